//! Loads configuration: files, `--set`, environment; strict, with line numbers.
