//! `prices`.

use std::time::Duration;

use crate::config::Section;
use crate::rules::prices::{ModelPrice, Prices, RuntimePrice};

pub(super) fn bind(section: &Section<'_>) -> Prices {
    let runtimes = "By the name of a runtime. None: executions have the cost that their spans say, if any.";
    let models = "By a pattern of a model's name, such as gpt-4o*; the first that fits counts.";
    Prices {
        runtimes: section.named_sections("runtimes", "e2b", runtimes, |name, runtime| {
            (name.to_owned(), runtime_price(runtime))
        }),
        models: section.named_sections("models", "gpt-4o*", models, |pattern, model| {
            (pattern.to_owned(), model_price(model))
        }),
    }
}

fn runtime_price(section: &Section<'_>) -> RuntimePrice {
    let seconds = |key, meaning| section.get::<Duration>(key, "0s", meaning).as_secs_f64();
    RuntimePrice {
        vcpu_second: section.get("vcpu_second", "0", "US dollars per virtual processor and second."),
        gib_second: section.get("gib_second", "0", "US dollars per GiB of memory and second."),
        execution: section.get("execution", "0", "US dollars per execution."),
        vcpus: section.get("vcpus", "1", "Virtual processors that an execution is given."),
        memory_gib: section.get("memory_gib", "1", "GiB of memory that an execution is given."),
        overhead_seconds: seconds("overhead", "Billed beside the execution's own time."),
        minimum_seconds: seconds("minimum", "Billed at least."),
    }
}

fn model_price(section: &Section<'_>) -> ModelPrice {
    ModelPrice {
        input: section.get("input", "0", "US dollars per million tokens of prompts."),
        output: section.get("output", "0", "US dollars per million tokens of answers."),
        cache_read: section.get("cache_read", "", "The same for tokens from a cache; unset: as input."),
        cache_write: section.get("cache_write", "", "The same for tokens into a cache; unset: as input."),
        cached_tokens_are_additional: section.choice(
            "cached_tokens",
            "included",
            "Whether the number of prompt tokens includes cached ones.",
            &[("included", false), ("additional", true)],
        ),
    }
}
