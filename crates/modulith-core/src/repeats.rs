//! How many more calls a request may repeat.
//!
//! Owns the count only. Repeats multiply along a chain of calls: three services that try four times each ask the last one
//! sixty-four times. So only the outermost caller repeats, and all of its calls share one small number.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The repeats that are left to a request, or to a piece of background work, in all its calls together. Clones share them.
#[derive(Debug, Clone)]
pub struct Repeats(Option<Arc<AtomicU32>>);

impl Repeats {
    /// The repeats of a request from outside and of background work: 3.
    pub const DEFAULT: u32 = 3;

    /// Of work that somebody else asked for, who repeats if anybody does.
    pub const fn none() -> Self {
        Self(None)
    }

    /// So many.
    pub fn at_most(repeats: u32) -> Self {
        Self(Some(Arc::new(AtomicU32::new(repeats))))
    }

    /// How many are left.
    pub fn left(&self) -> u32 {
        self.0.as_ref().map_or(0, |left| left.load(Ordering::Relaxed))
    }

    /// Takes one; false if none is left.
    pub fn take(&self) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.0
            .as_ref()
            .is_some_and(|left| left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok())
    }
}

impl Default for Repeats {
    fn default() -> Self {
        Self::at_most(Self::DEFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::Repeats;

    #[test]
    fn clones_share_what_is_left() {
        let repeats = Repeats::default();
        let other = repeats.clone();
        assert!(repeats.take() && other.take() && repeats.take());
        assert!(!repeats.take() && !other.take());
        assert_eq!((other.left(), Repeats::none().left()), (0, 0));
        assert!(!Repeats::none().take());
    }
}
