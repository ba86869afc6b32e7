//! Which part of the application answers which path.
//!
//! A prefix covers itself and what is below it: `/orders` covers `/orders` and `/orders/17`, not `/ordersx`. The
//! longest prefix wins. Paths are taken as they were sent, without normalising: one that two readers could take
//! for different paths never gets here (see [`is_plain`]).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use tower::Service;

use crate::http::Problem;

/// Targets by path prefix. Cheap to clone.
#[derive(Debug)]
pub struct RouteTable<T> {
    /// Longest prefix first.
    routes: Arc<[(Box<str>, T)]>,
}

impl<T> Clone for RouteTable<T> {
    fn clone(&self) -> Self {
        Self { routes: self.routes.clone() }
    }
}

/// What is wrong with a prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteProblem {
    #[error(
        "`{0}` is no prefix: write segments of plain text, `/orders` or `/shop/orders`, without a slash at the end"
    )]
    Malformed(String),
    #[error("two targets have the prefix `{0}`")]
    Twice(String),
}

impl<T> RouteTable<T> {
    /// A table of prefixes; `/` covers everything.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the prefixes.
    pub fn new<P: AsRef<str>>(routes: impl IntoIterator<Item = (P, T)>) -> Result<Self, Vec<RouteProblem>> {
        let mut problems = Vec::new();
        let mut table: Vec<(Box<str>, T)> = Vec::new();
        for (prefix, target) in routes {
            let prefix = prefix.as_ref();
            let whole = prefix == "/" || (is_plain(prefix) && !prefix.ends_with('/'));
            let kept = if prefix == "/" { "" } else { prefix };
            if !whole || prefix.contains(['{', '}', '?', '#', '%', '*']) {
                problems.push(RouteProblem::Malformed(prefix.to_owned()));
            } else if table.iter().any(|(other, _)| **other == *kept) {
                problems.push(RouteProblem::Twice(prefix.to_owned()));
            } else {
                table.push((kept.into(), target));
            }
        }
        table.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        if problems.is_empty() { Ok(Self { routes: table.into() }) } else { Err(problems) }
    }

    /// The target of a path. Costs a comparison per prefix, which for a few dozen is cheaper than hashing.
    pub fn lookup(&self, path: &str) -> Option<&T> {
        self.routes.iter().find(|(prefix, _)| covers(prefix, path)).map(|(_, target)| target)
    }

    /// Prefixes and targets, longest prefix first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.routes.iter().map(|(prefix, target)| (if prefix.is_empty() { "/" } else { &**prefix }, target))
    }
}

pub(crate) fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path is for those who look after a process, who have to reach it when nobody else does: health, and what
/// operators ask for.
pub(crate) fn is_operators(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz") || covers("/admin", path)
}

/// Whether a path reads the same for everybody: absolute, no empty segment but the last, no `.` or `..`, plain
/// or escaped, and no escaped slash, backslash or NUL.
pub(crate) fn is_plain(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else {
        return false;
    };
    if path.contains('\\') || (path.contains('%') && has_hidden(path)) {
        return false;
    }
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        let empty_inside = segment.is_empty() && segments.peek().is_some();
        if empty_inside || is_dots(segment) {
            return false;
        }
    }
    true
}

fn has_hidden(path: &str) -> bool {
    (path.as_bytes().windows(3)).any(|escape| {
        escape[0] == b'%'
            && matches!((escape[1], escape[2]), (b'2', b'f' | b'F') | (b'5', b'c' | b'C') | (b'0', b'0'))
    })
}

fn is_dots(segment: &str) -> bool {
    match segment {
        "." | ".." => true,
        _ if segment.len() > 6 || !segment.starts_with(['.', '%']) => false,
        _ => matches!(&*segment.replace("%2e", ".").replace("%2E", "."), "." | ".."),
    }
}

/// The whole application behind one door: each path goes to the router of the module that owns its prefix, which
/// sees the path whole. A path that nobody owns is 404.
#[derive(Debug, Clone)]
pub struct Merged(RouteTable<Router>);

impl Merged {
    /// Of routers that [`crate::http::finish`] has completed.
    pub fn new(routes: RouteTable<Router>) -> Self {
        Self(routes)
    }
}

impl Service<Request> for Merged {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.0.lookup(request.uri().path()) {
            Some(router) => Box::pin(router.clone().call(request)),
            None => Box::pin(std::future::ready(Ok(Problem::not_found().into_response()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let table = RouteTable::new([("/orders", 1), ("/orders/archive", 2), ("/o", 3)]).unwrap();
        for (path, target) in [
            ("/orders", Some(&1)),
            ("/orders/", Some(&1)),
            ("/orders/17/lines", Some(&1)),
            ("/orders/archived", Some(&1)),
            ("/orders/archive", Some(&2)),
            ("/orders/archive/1", Some(&2)),
            ("/o", Some(&3)),
            ("/ordersx", None),
            ("/Orders", None),
            ("/", None),
            ("", None),
        ] {
            assert_eq!(table.lookup(path), target, "{path}");
        }
        let all = RouteTable::new([("/", 0), ("/orders", 1)]).unwrap();
        assert_eq!(
            (all.lookup("/x"), all.lookup("/orders"), all.lookup("/")),
            (Some(&0), Some(&1), Some(&0))
        );
    }

    #[test]
    fn every_bad_prefix_is_told() {
        let bad = ["orders", "/orders/", "//", "/a//b", "/a/../b", "/{id}", ""];
        let problems = RouteTable::new(bad.map(|prefix| (prefix, ()))).unwrap_err();
        assert_eq!(problems, bad.map(|prefix| RouteProblem::Malformed(prefix.into())));
        let problems = RouteTable::new([("/a", ()), ("/a", ())]).unwrap_err();
        assert_eq!(problems, [RouteProblem::Twice("/a".into())]);
    }

    #[test]
    fn paths_that_can_be_read_in_two_ways_are_not_plain() {
        for path in ["/", "/a", "/a/", "/a/b.c", "/a/...", "/.well-known/x", "/a%20b", "/%E2%82%AC", "/a/..b"]
        {
            assert!(is_plain(path), "{path}");
        }
        for path in [
            "",
            "*",
            "a",
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/..",
            "/a/./b",
            "/a/../b",
            "/a/..",
            "/%2e",
            "/%2E%2e/a",
            "/.%2e/a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
        ] {
            assert!(!is_plain(path), "{path}");
        }
    }
}
