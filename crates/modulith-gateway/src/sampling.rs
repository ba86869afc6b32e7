//! Which requests from outside are traced in detail, decided before anything is made for it.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use modulith_core::{Trace, random_u64};

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static(Trace::PARENT);
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static(Trace::STATE);

/// Decides at the edge, once for the whole way of a request, whether spans are made for it.
///
/// A client that sends a valid `traceparent` keeps its trace's id. Whether to sample is decided here all the same, by
/// chance and not by the id, which a client chooses: else anybody outside could have every one of its requests recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The share of requests that are sampled, 0 to 1. Default 0.01.
    pub ratio: f64,
    /// The flag of a client's `traceparent` counts instead. Only where every client is one's own. Default false.
    pub trust_parent: bool,
}

impl Sampling {
    pub const RATIO_DEFAULT: f64 = 0.01;

    /// The trace of a request, taken out of its headers or begun.
    pub(crate) fn trace(self, headers: &mut HeaderMap) -> Trace {
        let told = take(headers);
        let sampled = match &told {
            Some(trace) if self.trust_parent => trace.is_sampled(),
            // 53 random bits are a number from 0 to below 1.
            _ => ((random_u64() >> 11) as f64) < self.ratio * (1_u64 << 53) as f64,
        };
        match told {
            None => Trace::start(sampled),
            Some(trace) => Trace { flags: trace.flags.with_sampled(sampled), ..trace.child() },
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { ratio: Self::RATIO_DEFAULT, trust_parent: false }
    }
}

/// The trace that a message tells of; its headers are gone afterwards, since they are of this hop alone.
pub(crate) fn take(headers: &mut HeaderMap) -> Option<Trace> {
    if !headers.contains_key(TRACEPARENT) {
        headers.remove(TRACESTATE);
        return None;
    }
    let values = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let trace = Trace::parse(values(TRACEPARENT), values(TRACESTATE));
    headers.remove(TRACEPARENT);
    headers.remove(TRACESTATE);
    trace
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0";

    fn trace(sampling: Sampling, flag: Option<u8>) -> Trace {
        let mut headers = HeaderMap::new();
        if let Some(flag) = flag {
            headers.insert(TRACEPARENT, HeaderValue::try_from(format!("{PARENT}{flag}")).unwrap());
            headers.insert(TRACESTATE, HeaderValue::from_static("foo=1"));
        }
        let trace = sampling.trace(&mut headers);
        assert!(headers.is_empty());
        assert_eq!(flag.is_some(), trace.traceparent().starts_with(&PARENT[..36]), "the id is kept");
        assert_eq!(flag.is_some(), trace.state.is_some());
        assert!(!trace.traceparent().contains("b7ad6b7169203331"), "the edge's own span asks on");
        trace
    }

    #[test]
    fn a_client_cannot_switch_sampling_on() {
        let share = |sampling: Sampling, flag| {
            (0..10_000).filter(|_| trace(sampling, flag).is_sampled()).count() as f64 / 10_000.0
        };
        let of = |ratio, trust_parent| Sampling { ratio, trust_parent };
        for flag in [None, Some(0), Some(1)] {
            assert_eq!((share(of(0.0, false), flag), share(of(1.0, false), flag)), (0.0, 1.0));
            // 5 standard deviations of 10,000 throws.
            assert!((share(of(0.5, false), flag) - 0.5).abs() < 0.025, "{flag:?}");
        }
        assert_eq!((share(of(0.0, true), Some(1)), share(of(1.0, true), Some(0))), (1.0, 0.0));
        assert_eq!((share(of(0.0, true), None), share(of(1.0, true), None)), (0.0, 1.0));
    }
}
