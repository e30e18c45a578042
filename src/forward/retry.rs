//! When to try again: exponential backoff with jitter, and what the backend itself advises.
//!
//! Knows no clock and no randomness: both are passed in, so that the policy is tested as arithmetic.

use std::time::{Duration, SystemTime};

/// Each delay is this much longer than the one before, until [`RetryOptions::max_interval`].
const FACTOR: f64 = 1.5;

/// A delay is spread by this fraction to either side, so that senders who failed together do not return together.
const SPREAD: f64 = 0.5;

/// The longest advice that is followed. A backend (or a proxy with a wrong clock) that asks for a day would otherwise
/// stop the exporter for a day after it was healed.
const LONGEST_ADVICE: Duration = Duration::from_secs(600);

/// `retry_on_failure` of an exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryOptions {
    /// The first delay, before jitter. Default 1 s. Raised by who wants to spare a backend that often fails briefly.
    pub initial_interval: Duration,
    /// No delay grows beyond this, unless the backend asks for more. Default 30 s. It is also how often a backend that
    /// refuses for a reason the operator can cure is tried again.
    pub max_interval: Duration,
    /// A request that could not be delivered for this long is given up and counted. Default 0: it is tried until it is
    /// delivered, and waits in the journal meanwhile.
    pub max_elapsed_time: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        RetryOptions {
            initial_interval: Duration::from_secs(1),
            max_interval: Duration::from_secs(30),
            max_elapsed_time: Duration::ZERO,
        }
    }
}

impl RetryOptions {
    /// The delay after the `failures`-th failure in a row (1 is the first).
    ///
    /// `advised` is what the backend asked for; nothing is sent earlier than that. `random` is in `0.0..1.0`.
    pub fn delay(&self, failures: u32, advised: Option<Duration>, random: f64) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial_interval.as_secs_f64() * FACTOR.powi(exponent);
        let base = grown.min(self.max_interval.as_secs_f64());
        let jittered = Duration::from_secs_f64(base * (1.0 - SPREAD + 2.0 * SPREAD * random));
        match advised.filter(|advice| !advice.is_zero()) {
            None => jittered,
            Some(advice) => {
                // Never earlier than asked, yet not everybody at the same moment.
                let advice = advice.min(LONGEST_ADVICE);
                let lateness = self.initial_interval.min(advice / 10).mul_f64(random);
                jittered.max(advice + lateness)
            }
        }
    }

    /// The delay before a backend is asked again whether its operator has cured what it refused.
    pub fn curable_delay(&self, advised: Option<Duration>, random: f64) -> Duration {
        self.delay(u32::MAX, advised, random)
    }

    /// Whether a request first tried `elapsed` ago is to be given up.
    pub fn is_over(&self, elapsed: Duration) -> bool {
        !self.max_elapsed_time.is_zero() && elapsed >= self.max_elapsed_time
    }
}

/// Reads `Retry-After`: seconds, or a date in any of the three forms that HTTP knows. `None` if it is neither.
pub fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        // RFC 9110 has whole seconds; some gateways send fractions.
        return (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(LONGEST_ADVICE.as_secs_f64())));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(LONGEST_ADVICE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: RetryOptions = RetryOptions {
        initial_interval: Duration::from_secs(1),
        max_interval: Duration::from_secs(30),
        max_elapsed_time: Duration::ZERO,
    };

    #[test]
    fn delays_grow_by_half_until_the_maximum() {
        let middle = |failures| OPTIONS.delay(failures, None, 0.5).as_secs_f64();
        assert_eq!(middle(1), 1.0);
        assert_eq!(middle(2), 1.5);
        assert_eq!(middle(3), 2.25);
        assert_eq!(middle(40), 30.0);
        assert_eq!(middle(u32::MAX), 30.0);
    }

    #[test]
    fn delays_are_spread_by_half_to_either_side() {
        assert_eq!(OPTIONS.delay(1, None, 0.0), Duration::from_millis(500));
        assert_eq!(OPTIONS.delay(1, None, 1.0), Duration::from_millis(1500));
    }

    #[test]
    fn nothing_is_sent_before_the_backend_asked_for_it() {
        for step in 0..=10 {
            let random = f64::from(step) / 10.0;
            let delay = OPTIONS.delay(1, Some(Duration::from_secs(7)), random);
            assert!(
                delay >= Duration::from_secs(7) && delay < Duration::from_secs(8),
                "{delay:?}"
            );
        }
        assert_eq!(
            OPTIONS.delay(20, Some(Duration::from_secs(7)), 0.5),
            Duration::from_secs(30)
        );
    }

    #[test]
    fn absurd_advice_is_followed_for_ten_minutes_at_most() {
        let delay = OPTIONS.delay(1, Some(Duration::from_secs(86_400)), 0.0);
        assert_eq!(delay, Duration::from_secs(600));
    }

    #[test]
    fn a_request_is_given_up_only_when_a_limit_is_set() {
        assert!(!OPTIONS.is_over(Duration::from_secs(1_000_000)));
        let limited = RetryOptions {
            max_elapsed_time: Duration::from_secs(300),
            ..OPTIONS
        };
        assert!(!limited.is_over(Duration::from_secs(299)));
        assert!(limited.is_over(Duration::from_secs(300)));
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_in_all_three_forms_of_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_747);
        for value in [
            "30",
            " 30 ",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse_retry_after(value, now), Some(Duration::from_secs(30)), "{value}");
        }
        assert_eq!(parse_retry_after("0.25", now), Some(Duration::from_millis(250)));
        let past = now + Duration::from_secs(3600);
        assert_eq!(
            parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", past),
            Some(Duration::ZERO)
        );
        for value in ["", "soon", "-1", "NaN", "Sun, 99 Nov 1994"] {
            assert_eq!(parse_retry_after(value, now), None, "{value}");
        }
        assert_eq!(parse_retry_after("1e300", now), Some(LONGEST_ADVICE));
        assert_eq!(parse_retry_after("inf", now), Some(LONGEST_ADVICE));
    }
}
