//! What runs and model calls are estimated to cost, from prices that the user sets. Pure functions; metrics and rows both
//! come from here, so that they cannot disagree.
//!
//! A span is not a bill: a sandbox is paid from its creation to its end, and discounts are nowhere on a span. So every
//! figure from here is an estimate, and is called so wherever it is shown. Without prices there are none.

/// The prices in force (`prices` in the configuration).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices {
    /// By the name of the runtime.
    pub runtimes: Vec<(String, RuntimePrice)>,
    /// By a pattern of the model's name; the first that fits counts.
    pub models: Vec<(String, ModelPrice)>,
}

/// The price of a run on one runtime, in US dollars.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RuntimePrice {
    /// Per virtual processor and second.
    pub vcpu_second: f64,
    /// Per GiB of memory and second.
    pub gib_second: f64,
    /// Per run, whatever its length.
    pub execution: f64,
    /// Processors that a run is given.
    pub vcpus: f64,
    /// Memory that a run is given.
    pub memory_gib: f64,
    /// Seconds that are billed beside the run's own: creating and ending its sandbox.
    pub overhead_seconds: f64,
    /// Seconds that are billed at least.
    pub minimum_seconds: f64,
}

impl RuntimePrice {
    /// What a run of this length costs.
    pub fn cost(&self, duration_ms: f64) -> f64 {
        let seconds = (duration_ms / 1e3 + self.overhead_seconds).max(self.minimum_seconds);
        self.execution + seconds * (self.vcpus * self.vcpu_second + self.memory_gib * self.gib_second)
    }
}

/// The price of a model, in US dollars per million tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ModelPrice {
    /// Of the prompt.
    pub input: f64,
    /// Of the answer.
    pub output: f64,
    /// Of prompt tokens that came from a cache; `None`: as the prompt.
    pub cache_read: Option<f64>,
    /// Of prompt tokens that went into a cache; `None`: as the prompt.
    pub cache_write: Option<f64>,
    /// Whether cached tokens come on top of the number of prompt tokens, instead of being among them.
    pub cached_tokens_are_additional: bool,
}

/// The tokens of one model call, as far as its span names them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Of the prompt.
    pub input: Option<f64>,
    /// Of the answer.
    pub output: Option<f64>,
    /// From a cache.
    pub cache_read: Option<f64>,
    /// Into a cache.
    pub cache_write: Option<f64>,
}

impl ModelPrice {
    /// What a call costs; nothing is known of one that names no tokens.
    pub fn cost(&self, usage: &Usage) -> Option<f64> {
        if usage.input.is_none() && usage.output.is_none() {
            return None;
        }
        let (read, write) = (usage.cache_read.unwrap_or(0.0), usage.cache_write.unwrap_or(0.0));
        let cached = if self.cached_tokens_are_additional {
            0.0
        } else {
            read + write
        };
        let plain = (usage.input.unwrap_or(0.0) - cached).max(0.0);
        let sum = plain * self.input
            + usage.output.unwrap_or(0.0) * self.output
            + read * self.cache_read.unwrap_or(self.input)
            + write * self.cache_write.unwrap_or(self.input);
        Some(sum / 1e6)
    }
}

impl Prices {
    /// What a run is estimated to cost; nothing without a price or a duration.
    pub fn execution_cost(&self, runtime: &str, duration_ms: Option<f64>) -> Option<f64> {
        let (_, price) = self.runtimes.iter().find(|(name, _)| name == runtime)?;
        duration_ms.filter(|took| *took >= 0.0).map(|took| price.cost(took))
    }

    /// What a model call is estimated to cost; nothing without a price or tokens.
    pub fn model_cost(&self, model: &str, usage: &Usage) -> Option<f64> {
        let (_, price) = self.models.iter().find(|(pattern, _)| fits(pattern, model))?;
        price.cost(usage)
    }
}

/// Whether `text` fits `pattern`, in which `*` stands for any text and `?` for any one byte; case does not matter.
fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // Where to go on when the text after the latest `*` turns out not to fit.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted.eq_ignore_ascii_case(&text[seen]) => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                seen = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_costs_its_share_of_processors_and_memory_for_as_long_as_it_is_billed() {
        let price = RuntimePrice {
            vcpu_second: 0.000_014,
            gib_second: 0.000_004_5,
            vcpus: 2.0,
            memory_gib: 0.5,
            ..RuntimePrice::default()
        };
        assert!((price.cost(1000.0) - 0.000_030_25).abs() < 1e-12);
        assert!((price.cost(3_600_000.0) - 0.1089).abs() < 1e-9);
        let billed = RuntimePrice {
            execution: 0.01,
            overhead_seconds: 2.0,
            minimum_seconds: 10.0,
            ..price
        };
        assert!((billed.cost(1000.0) - (0.01 + 10.0 * 0.000_030_25)).abs() < 1e-12);
        assert!((billed.cost(9000.0) - (0.01 + 11.0 * 0.000_030_25)).abs() < 1e-12);
        let prices = Prices {
            runtimes: vec![("e2b".to_owned(), price)],
            ..Prices::default()
        };
        assert_eq!(prices.execution_cost("vm2", Some(5.0)), None);
        assert_eq!(prices.execution_cost("e2b", None), None);
        assert_eq!(prices.execution_cost("e2b", Some(0.0)), Some(0.0));
    }

    #[test]
    fn cached_tokens_are_paid_once_whether_they_are_among_the_prompt_or_beside_it() {
        let among = ModelPrice {
            input: 2.0,
            output: 8.0,
            cache_read: Some(0.5),
            ..ModelPrice::default()
        };
        let usage = Usage {
            input: Some(1e6),
            output: Some(5e5),
            cache_read: Some(4e5),
            cache_write: None,
        };
        assert_eq!(among.cost(&usage), Some(0.6 * 2.0 + 4.0 + 0.4 * 0.5));
        let beside = ModelPrice {
            cached_tokens_are_additional: true,
            cache_write: Some(2.5),
            ..among
        };
        let usage = Usage {
            cache_write: Some(1e6),
            ..usage
        };
        assert_eq!(beside.cost(&usage), Some(2.0 + 4.0 + 0.2 + 2.5));
        assert_eq!(among.cost(&Usage::default()), None);
    }

    #[test]
    fn the_first_pattern_that_fits_the_model_counts() {
        let price = |input| ModelPrice {
            input,
            ..ModelPrice::default()
        };
        let prices = Prices {
            models: vec![
                ("gpt-4o-mini*".to_owned(), price(1.0)),
                ("*claude-?-5*".to_owned(), price(2.0)),
                ("gpt-*".to_owned(), price(3.0)),
            ],
            ..Prices::default()
        };
        let usage = Usage {
            input: Some(1e6),
            ..Usage::default()
        };
        for (model, expected) in [
            ("gpt-4o-mini-2024", Some(1.0)),
            ("GPT-4o", Some(3.0)),
            ("anthropic/claude-4-5-x", Some(2.0)),
            ("claude-45", None),
            ("gpt", None),
            ("", None),
        ] {
            assert_eq!(prices.model_cost(model, &usage), expected, "{model}");
        }
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("**a", "bba", true),
            ("a?", "a", false),
            ("abc", "abcd", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }
}
