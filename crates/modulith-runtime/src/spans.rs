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
