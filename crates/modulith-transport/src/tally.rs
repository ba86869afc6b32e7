//! Counts what every call adds to.
//!
//! Owns the spread of one number over several cache lines. Two cores that add to the same line wait for each other, by about
//! as much as all the rest of a call's bookkeeping; so each thread adds to a line of its own (or shares it with few), and
//! who reads adds up: the `LongAdder` of Java, with a fixed number of cells.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Cells of one number, a power of two. More threads than these share them.
pub const CELLS: usize = 4;

/// Alone on its cache lines: 128 bytes, since processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Apart<T>(pub T);

/// The cell that this thread adds to, below [`CELLS`]; the same for as long as it lives.
pub fn cell() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    OWN.with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed) % CELLS);
        }
        own.get()
    })
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Tally([Apart<AtomicU64>; CELLS]);

impl Tally {
    /// Counts one.
    pub fn add_one(&self) {
        self.0[cell()].0.fetch_add(1, Ordering::Relaxed);
    }

    /// What all threads have counted.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(|cell| cell.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_any_thread_counts_is_lost() {
        let tally = Tally::default();
        std::thread::scope(|threads| {
            for _ in 0..3 * CELLS {
                threads.spawn(|| (0..1000).for_each(|_| tally.add_one()));
            }
        });
        assert_eq!(tally.sum(), 3000 * CELLS as u64);
    }
}
