//! Numbers for jitter and for choosing between replicas.
//!
//! Not for secrets: nonces come from the operating system, in the handshake.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

thread_local! {
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0x6d6f_6475_6c69_7468_u64));
}

/// The next number of this thread's SplitMix64 sequence (Steele, Lea, Flood, 2014).
pub(crate) fn next() -> u64 {
    STATE.with(|state| {
        let seed = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(seed);
        let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// A number below `bound`, which must not be zero. The bias is below one in 2^32 for the bounds used here.
pub(crate) fn below(bound: usize) -> usize {
    (next() % bound.max(1) as u64) as usize
}
