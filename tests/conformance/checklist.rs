//! Every item of OTLP 1.11 for a receiver and for an exporter, and how each is shown to be met.

use std::fmt::Write;
use std::path::Path;

/// One item. `S`: of the receiver; `C`: of the exporter.
struct Item {
    number: u8,
    side: &'static str,
    level: &'static str,
    text: &'static str,
    shown: Shown,
}

/// How an item is shown to be met.
enum Shown {
    /// Requirements of this suite, by the names of their tests.
    Here(&'static [&'static str]),
    /// Tests elsewhere: file and name.
    There(&'static [(&'static str, &'static str)]),
    /// Not met on purpose, or nothing that applies: why.
    Not(&'static str),
}

use Shown::{Here, Not, There};

const ANSWERS: &str = "src/forward/answer.rs";
const FAILURES: &str = "src/forward/tests/failures.rs";
const FORWARD_HTTP: &str = "src/forward/tests/http.rs";
const RETRY: &str = "src/forward/retry.rs";
const ACCESS: &str = "tests/receive/access.rs";
const LARGE: &str = "tests/receive/large.rs";

macro_rules! items {
    ($($number:literal $side:literal $level:literal $text:literal => $shown:expr;)*) => {
        &[$(Item { number: $number, side: $side, level: $level, text: $text, shown: $shown },)*]
    };
}

const ITEMS: &[Item] = items! {
    1 "S" "MUST" "compressions none and gzip" => Here(&["none_and_gzip_are_taken", "further_compressions_are_taken"]);
    2 "S" "–" "gRPC: unary Export of each signal, port 4317" => Here(&["every_signal_is_served"]);
    3 "S" "–" "HTTP: POST to /v1/traces, /v1/metrics, /v1/logs, port 4318" => Here(&["every_signal_is_served"]);
    4 "S, C" "MAY" "other URL paths" =>
        Not("of the receiver fixed; of an exporter the path of `endpoint` is kept, as src/forward/endpoint.rs tests");
    5 "S" "MAY" "HTTP/1.1 and HTTP/2" => Here(&["http2_is_served"]);
    6 "S" "MUST" "gRPC: a size limit, also after decompression, else RESOURCE_EXHAUSTED without RetryInfo" =>
        Here(&["sizes_are_limited", "sizes_are_limited_after_decompression"]);
    7 "S" "MUST" "HTTP: a size limit, also after decompression, else 413" =>
        Here(&["sizes_are_limited", "sizes_are_limited_after_decompression"]);
    8 "C" "MUST" "nothing over the limit of a request is sent" => There(&[
        (FORWARD_HTTP, "a_request_over_the_limit_is_split_between_spans_and_nothing_sent_is_over_it"),
        (FAILURES, "too_large_is_split_down_to_the_span_that_is_too_large_by_itself"),
    ]);
    9 "C" "MUST" "of a response at most 4 MiB are kept, and a longer one is not retried" =>
        There(&[(FAILURES, "a_success_is_a_success_whatever_its_body_and_partial_success_is_not_retried")]);
    10 "S" "MUST" "responses are limited; texts are shortened" =>
        There(&[("src/otlp/status.rs", "a_long_text_is_cut_between_characters")]);
    11 "S" "SHOULD" "protobuf and JSON on one port" => Here(&["both_encodings_share_a_port"]);
    12 "S" "MAY" "gRPC and HTTP on one port" => Here(&["grpc_and_http_share_a_port"]);
    13 "C" "SHOULD" "the connection is kept between requests" =>
        There(&[(FAILURES, "a_keep_alive_connection_that_the_backend_closes_is_no_failure")]);
    14 "C" "MAY" "several connections, configurable" =>
        There(&[("src/forward/tests/lanes.rs", "one_failure_of_a_backend_that_works_holds_up_only_the_request_that_failed")]);
    15 "C" "SHOULD" "concurrent requests, configurable (`max_concurrent_requests`)" =>
        There(&[("src/forward/tests/lanes.rs", "a_full_request_does_not_wait_for_one_under_way")]);
    16 "C" "SHOULD" "at shutdown outstanding answers are awaited; what is not delivered stays in the journal" => There(&[
        (FORWARD_HTTP, "shutdown_delivers_what_the_journal_still_holds"),
        (FAILURES, "shutdown_does_not_wait_for_a_backend_that_is_away_and_keeps_everything"),
    ]);
    17 "S" "–" "CORS" => There(&[
        (ACCESS, "pages_of_allowed_origins_get_their_preflight_without_a_token_and_may_read_answers_and_refusals"),
        ("tests/e2e/real_sdks.rs", "a_page_in_a_browser_posts_json_across_origins_if_it_is_allowed_to_and_only_then"),
    ]);
    18 "S, C" "MUST" "binary: application/x-protobuf, both ways" => Here(&["full_success_is_plain"]);
    19 "S, C" "MUST" "JSON: application/json, both ways" =>
        Here(&["full_success_is_plain", "content_types_may_have_parameters"]);
    20 "S" "MUST" "the response has the content type of the request" =>
        Here(&["full_success_is_plain", "every_error_has_a_status"]);
    21 "C" "MUST" "Content-Encoding is set" => There(&[
        (FORWARD_HTTP, "a_gzip_body_passes_through_with_equal_bytes_and_the_headers_say_so"),
        (FORWARD_HTTP, "a_fixed_compression_applies_to_every_body"),
    ]);
    22 "S, C" "MAY" "compressed responses" =>
        Not("a response is empty or a short text; compressing it would make it longer");
    23 "S" "–" "unknown content type 415, other methods 405" =>
        Here(&["unknown_content_types", "only_post_is_taken"]);
    24 "S" "–" "unknown, repeated and broken compression" => Here(&[
        "unknown_content_encodings",
        "repeated_content_encodings",
        "broken_compression_is_a_bad_request",
    ]);
    25 "S, C" "–" "ids in JSON are hexadecimal" => Here(&["ids_are_hexadecimal", "ids_are_not_base64"]);
    26 "S" "–" "other bytes are base64" => Here(&["bytes_are_base64"]);
    27 "S, C" "MUST" "enums in JSON are integers; names are understood all the same" => Here(&["enums_are_integers"]);
    28 "S" "MUST" "unknown names are ignored" => Here(&["unknown_keys_are_ignored"]);
    29 "S, C" "–" "keys are lowerCamelCase" => Here(&["snake_case_is_unknown"]);
    30 "S, C" "–" "64-bit integers as strings or numbers" => Here(&["integers_in_every_form"]);
    31 "S" "–" "null is absent; NaN and infinities are strings" => Here(&["null_is_absent", "special_numbers"]);
    32 "S" "–" "integers out of range are 400" => Here(&["integers_have_a_range"]);
    33 "S" "SHOULD" "an empty request succeeds" => Here(&["empty_requests_succeed"]);
    34 "S" "MUST" "full success leaves `partial_success` unset" => Here(&["full_success_is_plain"]);
    35 "S" "MUST" "partial success says how many and why" => Here(&["invalid_ids_are_partial_success"]);
    36 "S" "MUST" "warnings are partial successes that reject nothing" =>
        Not("nothing is taken that would need a warning; the form is written and tested in src/otlp/status.rs");
    37 "C" "MUST" "partial success is not retried" =>
        There(&[(FAILURES, "a_success_is_a_success_whatever_its_body_and_partial_success_is_not_retried")]);
    38 "S" "MUST" "failures are 4xx and 5xx" =>
        Here(&["every_error_has_a_status", "what_is_not_http_has_a_status"]);
    39 "S" "MUST" "the body of each is a `Status`" =>
        Here(&["every_error_has_a_status", "what_is_not_http_has_a_status"]);
    40 "S" "MUST" "undecodable data is 400 with `BadRequest`" =>
        Here(&["undecodable_is_a_bad_request", "undecodable_says_what"]);
    41 "C" "MUST" "400 is not retried" =>
        There(&[(FAILURES, "of_a_joined_request_that_is_refused_only_the_culprit_is_set_aside")]);
    42 "C" "SHOULD" "which gRPC codes are retried" => There(&[(ANSWERS, "every_grpc_code_has_its_verdict")]);
    43 "C" "SHOULD" "RESOURCE_EXHAUSTED: of the size, set aside; of a quota, waited for" => There(&[
        (ANSWERS, "a_message_over_the_limit_of_a_grpc_server_is_too_large_and_not_over_quota"),
        ("src/forward/tests/grpc.rs", "a_message_over_the_servers_limit_is_split_although_the_code_is_that_of_a_quota"),
    ]);
    44 "C" "MUST" "other codes: the request is not repeated as it is. What the operator can cure waits for the cure (README), \
        the rest is set aside and counted" => There(&[
        (ANSWERS, "every_grpc_code_has_its_verdict"),
        (FAILURES, "an_answer_that_the_operator_can_cure_holds_the_queue_names_the_key_and_heals"),
        ("src/forward/tests/grpc.rs", "an_invalid_argument_is_set_aside"),
    ]);
    45 "S" "SHOULD" "retryable is UNAVAILABLE" =>
        There(&[(LARGE, "a_full_journal_is_unavailable_with_a_time_to_come_again_and_takes_nothing_partly")]);
    46 "S" "SHOULD" "bad data is INVALID_ARGUMENT" => Here(&["undecodable_is_a_bad_request"]);
    47 "C" "SHOULD" "exponential backoff" => There(&[(RETRY, "delays_grow_by_half_until_the_maximum")]);
    48 "S, C" "MUST" "backpressure: UNAVAILABLE with RetryInfo, which is followed" => There(&[
        (LARGE, "beyond_the_bytes_in_flight_senders_are_told_to_try_again_and_then_succeed"),
        ("src/forward/tests/grpc.rs", "the_delay_of_retry_info_is_honoured"),
    ]);
    49 "C" "SHOULD" "only 429, 502, 503, 504 are retried" => There(&[(ANSWERS, "every_http_status_has_its_verdict")]);
    50 "S" "SHOULD" "overload is 503 with Retry-After" => There(&[
        (LARGE, "beyond_the_bytes_in_flight_senders_are_told_to_try_again_and_then_succeed"),
        (ACCESS, "a_closed_journal_is_unavailable_and_senders_come_again"),
    ]);
    51 "C" "SHOULD" "Retry-After as seconds and as a date" => There(&[
        (FAILURES, "retry_after_is_honoured"),
        (RETRY, "retry_after_is_read_in_seconds_and_in_all_three_forms_of_a_date"),
    ]);
    52 "C" "SHOULD" "no answer: the request is sent again" => There(&[
        (FAILURES, "transient_answers_are_retried_until_the_request_is_delivered"),
        (FAILURES, "a_backend_that_does_not_answer_in_time_is_asked_again"),
    ]);
    53 "C" "MUST" "no connection: retried, with jitter" => There(&[
        (FAILURES, "a_backend_that_is_away_is_named_and_gets_everything_when_it_is_back"),
        (RETRY, "delays_are_spread_by_half_to_either_side"),
    ]);
    54 "C" "–" "a 2xx is delivered, whatever its body, unless that is a web page" =>
        There(&[(ANSWERS, "every_2xx_is_delivered_whatever_its_body"), (ANSWERS, "a_web_page_is_no_receiver_and_delivers_nothing")]);
    55 "C" "–" "errors are read in their own content type" =>
        There(&[("src/forward/reply.rs", "the_delay_of_retry_info_is_read_from_protobuf_and_from_json")]);
    56 "S" "MUST" "invalid ids" => Here(&["invalid_ids_are_partial_success"]);
    57 "S, C" "MUST" "flags are passed on" =>
        There(&[("tests/e2e/pass_through.rs", "bytes_arrive_unchanged_over_every_pair_of_ways_in_and_out")]);
    58 "S" "–" "times out of order, no kind, no name" => Here(&["timestamps_need_not_be_in_order"]);
    59 "S" "–" "an attribute given twice is passed on as it is; metrics and rows take the last one" =>
        There(&[("src/meter/contract_tests.rs", "of_a_key_that_is_given_twice_the_last_one_counts")]);
    60 "S" "MUST" "every kind of value" => Here(&["every_value_is_taken"]);
    61 "S, C" "MUST" "everything is preserved, unknown fields too" => There(&[
        ("src/otlp/tests/cut.rs", "unknown_fields_and_the_order_of_fields_survive_at_every_level"),
        ("tests/e2e/pass_through.rs", "bytes_arrive_unchanged_over_every_pair_of_ways_in_and_out"),
    ]);
    62 "S" "MUST" "references into the string table are not fatal, and absent" => Here(&["string_references_are_absent"]);
    63 "S" "MAY" "empty envelopes" => Here(&["empty_envelopes_are_harmless"]);
    64 "C" "SHOULD" "a destination does not slow another one" =>
        There(&[(FAILURES, "an_exporter_whose_backend_is_away_does_not_slow_another_one")]);
    65 "S" "–" "requests sent again count once" => There(&[
        ("tests/e2e/duplicates.rs", "requests_sent_up_to_three_times_over_several_connections_count_as_one_clean_send"),
        ("tests/e2e/duplicates.rs", "a_request_sent_again_after_a_kill_counts_once_and_is_answered_as_before"),
    ]);
    66 "S, C" "MUST" "other versions: unknown fields and keys are ignored" =>
        Here(&["unknown_fields_are_ignored", "unknown_keys_are_ignored"]);
    67 "C" "–" "`OTEL_EXPORTER_OTLP_*`" =>
        Not("of SDKs; on the host of a sidecar these variables point executors at the sidecar, so it does not read them, as \
            the Collector does not");
    68 "C" "–" "the scheme decides over TLS" =>
        There(&[("src/forward/tests/secure.rs", "a_backend_with_a_certificate_of_our_authority_is_trusted_over_both_protocols")]);
    69 "C" "MUST" "transient errors are retried with backoff and jitter" => There(&[
        (FAILURES, "transient_answers_are_retried_until_the_request_is_delivered"),
        (RETRY, "delays_are_spread_by_half_to_either_side"),
    ]);
    70 "C" "SHOULD" "User-Agent" => Not("`OTel-OTLP-Exporter-…` is the name of SDKs; this program says `spanledger/<version>`");
    71 "C" "–" "default limits of 64 MiB and 4 MiB" =>
        Not("requests are kept at 3.5 MiB by default (`max_request_size`), because receivers of before 1.11 take 4 MiB; \
            responses at 4 MiB");
};

/// The items as Markdown. Panics when a test that is named does not exist.
pub fn table() -> String {
    let numbers: Vec<u8> = ITEMS.iter().map(|item| item.number).collect();
    assert_eq!(numbers, (1..=71).collect::<Vec<_>>(), "every item, once");
    let mut table = String::from(
        "\n## Every item, receiver (S) and exporter (C)\n\n\
         Named is what fails when it is no longer so: a line of the table above by the name of its test, or a test \
         elsewhere.\n\n\
         | # | side | level | item | shown by |\n|---|---|---|---|---|\n",
    );
    for item in ITEMS {
        let shown = match &item.shown {
            Here(names) => names
                .iter()
                .map(|name| requirement(name))
                .collect::<Vec<_>>()
                .join(", "),
            There(tests) => tests.iter().map(elsewhere).collect::<Vec<_>>().join(", "),
            Not(why) => (*why).to_owned(),
        };
        writeln!(
            table,
            "| {} | {} | {} | {} | {shown} |",
            item.number, item.side, item.level, item.text
        )
        .unwrap();
    }
    table
}

fn requirement(name: &str) -> String {
    assert!(
        crate::all_requirements().any(|it| it.name == name),
        "no requirement {name}"
    );
    format!("`{name}`")
}

fn elsewhere((file, name): &(&str, &str)) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    assert!(text.contains(&format!("fn {name}(")), "no test {name} in {file}");
    format!("`{name}` ({file})")
}
