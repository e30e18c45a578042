//! The metric catalogue and users' rules, compiled to a matcher.
