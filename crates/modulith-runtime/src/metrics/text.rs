//! Prometheus' text format, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>): written, and that of several
//! processes put together.

use std::fmt::{Display, Write};

use super::meter::{BOUNDS_US, Times};

pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of one process, each sample with the label `service`.
pub(super) struct Text<'a> {
    out: String,
    service: &'a str,
}

pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl<'a> Text<'a> {
    pub(super) fn new(service: &'a str) -> Self {
        Self { out: String::with_capacity(16 * 1024), service }
    }

    /// Begins a family; all its samples follow.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    pub(super) fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        let service = self.service;
        self.put(format_args!("{name}{{service=\"{service}\""));
        for (label, text) in labels {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            self.put(format_args!(",{label}=\"{text}\""));
        }
        self.put(format_args!("}} {value}\n"));
    }

    /// A family of one sample.
    pub(super) fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub(super) fn histogram(&mut self, name: &str, labels: Labels<'_>, times: &Times) {
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (at, in_bucket) in times.buckets.iter().enumerate() {
            count += in_bucket;
            let bound = BOUNDS_US.get(at).map_or("+Inf".to_owned(), |us| (*us as f64 / 1e6).to_string());
            self.sample(&bucket, &[labels, &[("le", &bound)]].concat(), count);
        }
        self.sample(&format!("{name}_sum"), labels, times.sum_ns as f64 / 1e9);
        // The buckets' own sum, so that count and last bucket are equal while calls go on.
        self.sample(&format!("{name}_count"), labels, count);
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("a string takes everything");
    }
}

/// The texts of several processes as one: each family once, with the samples of all.
pub(crate) fn merged<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let mut families: Vec<(&str, String)> = Vec::new();
    for text in texts {
        let mut at = None;
        for line in text.lines() {
            if let Some(about) = line.strip_prefix("# HELP ") {
                let name = about.split(' ').next().unwrap_or_default();
                let known = families.iter().position(|(known, _)| *known == name);
                at = known.or_else(|| {
                    families.push((name, format!("{line}\n")));
                    Some(families.len() - 1)
                });
                continue;
            }
            let Some((_, family)) = at.map(|at: usize| &mut families[at]) else {
                continue;
            };
            // The type stands below the family's first HELP only.
            if !line.starts_with('#') || !family.contains("# TYPE ") {
                family.push_str(line);
                family.push('\n');
            }
        }
    }
    families.into_iter().map(|(_, family)| family).collect()
}

#[cfg(test)]
mod tests {
    use super::super::meter::{CallMeter, Ended};
    use super::*;

    #[test]
    fn families_of_several_processes_stand_once() {
        let text = |service: &str, more: bool| {
            let mut text = Text::new(service);
            text.single("up", "gauge", "It runs.", 1);
            if more {
                text.family("calls_total", "counter", "Calls.");
                text.sample("calls_total", &[("peer", "a\"\\\nb")], 2);
            }
            text.finish()
        };
        assert_eq!(
            merged([&*text("a", false), &text("b", true), &text("c", true)]),
            "# HELP up It runs.\n# TYPE up gauge\nup{service=\"a\"} 1\nup{service=\"b\"} 1\nup{service=\"c\"} 1\n\
             # HELP calls_total Calls.\n# TYPE calls_total counter\n\
             calls_total{service=\"b\",peer=\"a\\\"\\\\\\nb\"} 2\n\
             calls_total{service=\"c\",peer=\"a\\\"\\\\\\nb\"} 2\n"
        );
    }

    #[test]
    fn buckets_are_cumulative() {
        let meter = CallMeter::default();
        for us in [10, 60, 60, 20_000_000] {
            meter.ended(Ended::Done, std::time::Duration::from_micros(us));
        }
        let mut text = Text::new("a");
        text.histogram("t_seconds", &[("m", "x")], &meter.times());
        let text = text.finish();
        for line in [
            "t_seconds_bucket{service=\"a\",m=\"x\",le=\"0.00005\"} 1",
            "t_seconds_bucket{service=\"a\",m=\"x\",le=\"0.0001\"} 3",
            "t_seconds_bucket{service=\"a\",m=\"x\",le=\"10\"} 3",
            "t_seconds_bucket{service=\"a\",m=\"x\",le=\"+Inf\"} 4",
            "t_seconds_sum{service=\"a\",m=\"x\"} 20.00013",
            "t_seconds_count{service=\"a\",m=\"x\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }
}
