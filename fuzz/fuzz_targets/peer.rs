//! Throws bytes at the transport; `modulith_transport::fuzz` says where they land.
//!
//! From the repository's root, for ten minutes, with what was found kept in `fuzz/corpus/peer`:
//!
//! ```text
//! cargo +nightly fuzz run peer -- -max_total_time=600 -max_len=8192 -timeout=25 -rss_limit_mb=1024 -malloc_limit_mb=64
//! ```

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| modulith_transport::fuzz::run(bytes));
