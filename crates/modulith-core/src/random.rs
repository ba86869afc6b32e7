//! Numbers for ids: unique, fast to make, and not secret.
//!
//! Never for keys, tokens or nonces, which come from the operating system one by one.

use std::cell::Cell;

thread_local! {
    static STATE: Cell<[u64; 2]> = Cell::new(seed());
}

/// 128 bits from the operating system; xoroshiro must not begin at zero.
fn seed() -> [u64; 2] {
    let bits = uuid::Uuid::new_v4().as_u128();
    [bits as u64 | 1, (bits >> 64) as u64]
}

/// The next 64 bits of this thread's xoroshiro128++ (Blackman and Vigna, 2019): no lock, and no system call but the
/// thread's first. Two threads have 2^128 states to begin in, so that their numbers do not meet.
pub fn random_u64() -> u64 {
    STATE.with(|state| {
        let [a, mut b] = state.get();
        let next = a.wrapping_add(b).rotate_left(17).wrapping_add(a);
        b ^= a;
        state.set([a.rotate_left(49) ^ b ^ (b << 21), b.rotate_left(28)]);
        next
    })
}
