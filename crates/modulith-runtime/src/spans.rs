//! Spans around what a process asks and answers, for log lines that tell which request they belong to.
//!
//! Of a trace that is not sampled there is none, and nothing is made for it: that was decided at the edge, before any
//! span. They have the level of an error, so that a warning within carries the ids whatever is logged.

use modulith_core::Trace;
use tracing::{Span, error_span};

/// Around a call to another service, its repeats included.
pub(crate) fn call(trace: Option<&Trace>, request_id: &str, contract: &str, method: &str) -> Span {
    trace.filter(|trace| trace.is_sampled()).map_or_else(Span::none, |trace| {
        let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
        error_span!("call", %trace_id, %span_id, request_id, contract, method)
    })
}

/// Around what another service called.
pub(crate) fn answer(trace: Option<&Trace>, request_id: &str, contract: &str, method: &str) -> Span {
    trace.filter(|trace| trace.is_sampled()).map_or_else(Span::none, |trace| {
        let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
        error_span!("answer", %trace_id, %span_id, request_id, contract, method)
    })
}

/// Around one attempt at an effect.
pub(crate) fn effect(trace: Option<&Trace>, request_id: &str) -> Span {
    trace.filter(|trace| trace.is_sampled()).map_or_else(Span::none, |trace| {
        let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
        error_span!("effect", %trace_id, %span_id, request_id)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span::{Attributes, Id};
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    #[derive(Clone, Default)]
    struct Count(Arc<AtomicUsize>);

    impl Layer<Registry> for Count {
        fn on_new_span(&self, _: &Attributes<'_>, _: &Id, _: Context<'_, Registry>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_span_is_made_for_what_is_sampled_alone() {
        let count = Count::default();
        tracing::subscriber::with_default(Registry::default().with(count.clone()), || {
            for trace in [None, Some(Trace::start(false)), Some(Trace::start(true))] {
                let before = count.0.load(Ordering::Relaxed);
                drop((call(trace.as_ref(), "r", "c", "m"), answer(trace.as_ref(), "r", "c", "m")));
                drop(effect(trace.as_ref(), "r"));
                let made = count.0.load(Ordering::Relaxed) - before;
                assert_eq!(made, if trace.is_some_and(|trace| trace.is_sampled()) { 3 } else { 0 });
            }
        });
    }
}
