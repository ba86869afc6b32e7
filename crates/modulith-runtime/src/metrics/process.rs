//! The process itself, by the names that every Prometheus client uses. What the system does not tell is left out.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::text::Text;

pub(super) fn write(text: &mut Text<'_>, started: SystemTime) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec.unsigned_abs() as u32).as_secs_f64();
    text.single("process_cpu_seconds_total", "counter", "Processor time, user and system.", cpu);
    if let Some(bytes) = resident_bytes() {
        text.single("process_resident_memory_bytes", "gauge", "Memory in use.", bytes);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let name = "process_open_fds";
        text.single(name, "gauge", "Open files, sockets included.", open.count().saturating_sub(1));
    }
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let name = "process_start_time_seconds";
    text.single(name, "gauge", "When it started, in seconds since 1970.", started);
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
