/// SplitMix64: every caller draws the same products in every run.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of one caller.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Two different numbers below `bound`, which is at least 2.
    pub fn two_below(&mut self, bound: usize) -> (usize, usize) {
        let first = (self.next() % bound as u64) as usize;
        let second = (first + 1 + (self.next() % (bound as u64 - 1)) as usize) % bound;
        (first, second)
    }
}
