//! One of something for each signal, so that none can be missed or mistaken for another.

use std::ops::{Index, IndexMut};

use crate::otlp::Signal;

/// One for each signal.
#[derive(Debug)]
pub(super) struct PerSignal<T> {
    traces: T,
    metrics: T,
    logs: T,
}

impl<T> PerSignal<T> {
    pub(super) fn new(mut of: impl FnMut(Signal) -> T) -> PerSignal<T> {
        PerSignal {
            traces: of(Signal::Traces),
            metrics: of(Signal::Metrics),
            logs: of(Signal::Logs),
        }
    }

    /// In the order of [`Signal::ALL`].
    pub(super) fn iter(&self) -> impl Iterator<Item = (Signal, &T)> {
        Signal::ALL.into_iter().map(|signal| (signal, &self[signal]))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [&mut self.traces, &mut self.metrics, &mut self.logs].into_iter()
    }
}

impl<T, E> PerSignal<Result<T, E>> {
    /// All of them, or the first error.
    pub(super) fn transpose(self) -> Result<PerSignal<T>, E> {
        Ok(PerSignal {
            traces: self.traces?,
            metrics: self.metrics?,
            logs: self.logs?,
        })
    }
}

impl<T> Index<Signal> for PerSignal<T> {
    type Output = T;

    fn index(&self, signal: Signal) -> &T {
        match signal {
            Signal::Traces => &self.traces,
            Signal::Metrics => &self.metrics,
            Signal::Logs => &self.logs,
        }
    }
}

impl<T> IndexMut<Signal> for PerSignal<T> {
    fn index_mut(&mut self, signal: Signal) -> &mut T {
        match signal {
            Signal::Traces => &mut self.traces,
            Signal::Metrics => &mut self.metrics,
            Signal::Logs => &mut self.logs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_signal_has_its_own() {
        let mut per_signal = PerSignal::new(Signal::name);
        for signal in Signal::ALL {
            assert_eq!(per_signal[signal], signal.name());
        }
        per_signal[Signal::Metrics] = "changed";
        let all: Vec<_> = per_signal.iter().map(|(signal, name)| (signal.name(), *name)).collect();
        assert_eq!(all, [("traces", "traces"), ("metrics", "changed"), ("logs", "logs")]);
        assert_eq!(
            per_signal.values_mut().map(|name| *name).collect::<Vec<_>>(),
            ["traces", "changed", "logs"]
        );
    }
}
