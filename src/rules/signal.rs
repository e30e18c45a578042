//! Signals by their usual names.

/// The name of a signal from any of its usual spellings: `killed`, `signal: killed`, `KILL`, `sigkill`, `9`. Another
/// text is returned as it is.
pub fn signal_name(text: &str) -> &str {
    known_signal(text).unwrap_or(text)
}

/// The name of a signal, if the text is one of its usual spellings.
pub fn known_signal(text: &str) -> Option<&'static str> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    let text = text.strip_suffix("(core dumped)").map_or(text, str::trim_end);
    let bare = ["signal: ", "signal "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    let bare = bare.unwrap_or(text);
    let number = bare.parse::<u8>().ok();
    let means = |(signal, name, description): &&(u8, &'static str, &str)| {
        let short = name.strip_prefix("SIG").unwrap_or(name);
        [*name, short, *description]
            .iter()
            .any(|word| word.eq_ignore_ascii_case(bare))
            || number == Some(*signal)
    };
    SIGNALS.iter().find(means).map(|(_, name, _)| *name)
}

/// Number on Linux, name, description.
const SIGNALS: [(u8, &str, &str); 19] = [
    (1, "SIGHUP", "hangup"),
    (2, "SIGINT", "interrupt"),
    (3, "SIGQUIT", "quit"),
    (4, "SIGILL", "illegal instruction"),
    (5, "SIGTRAP", "trace/breakpoint trap"),
    (6, "SIGABRT", "aborted"),
    (7, "SIGBUS", "bus error"),
    (8, "SIGFPE", "floating point exception"),
    (9, "SIGKILL", "killed"),
    (10, "SIGUSR1", "user defined signal 1"),
    (11, "SIGSEGV", "segmentation fault"),
    (12, "SIGUSR2", "user defined signal 2"),
    (13, "SIGPIPE", "broken pipe"),
    (14, "SIGALRM", "alarm clock"),
    (15, "SIGTERM", "terminated"),
    (19, "SIGSTOP", "stopped (signal)"),
    (24, "SIGXCPU", "cpu time limit exceeded"),
    (25, "SIGXFSZ", "file size limit exceeded"),
    (31, "SIGSYS", "bad system call"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_any_of_their_spellings() {
        for text in [
            "SIGKILL",
            "sigkill",
            "kill",
            "killed",
            "signal: killed",
            "9",
            "signal 9",
            " Killed ",
        ] {
            assert_eq!(signal_name(text), "SIGKILL", "{text}");
        }
        assert_eq!(signal_name("terminated"), "SIGTERM");
        assert_eq!(signal_name("segmentation fault (core dumped)"), "SIGSEGV");
        assert_eq!(signal_name("SIGRTMIN+3"), "SIGRTMIN+3");
        assert_eq!(signal_name(""), "");
    }
}
