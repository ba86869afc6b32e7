//! Protections that a test can switch off, to see that some test then fails.
//!
//! A check that cannot fail is worth nothing, so each promise is tested twice: with its protection, which must
//! hold in every schedule, and without it, which must break in at least one.

use std::sync::atomic::{AtomicU32, Ordering};

/// What a promise rests on. Every use of [`Protection::is_on`] names the place where the protection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Protection {
    /// The frontier is sealed, or has refused, before anything is undone.
    Seal,
    /// The inbox row is claimed before the command runs.
    ClaimFirst,
    /// A refusal is stored under its key.
    StoredRefusal,
    /// What led to a refusal is rolled back.
    RefusalRollsBack,
    /// An effect's intent is committed before the effect is attempted.
    Intent,
    /// A late attempt at an effect does not overwrite what stands.
    FirstOutcomeStands,
    /// An effect that was begun is not sealed.
    StartedIsNotSealed,
    /// A repeat of an effect past its provider's window is not sent.
    EffectWindow,
    /// The saga's row is on disk before any remote step or effect.
    BeginFirst,
    /// A process that another one has taken over from begins no saga.
    Fence,
    /// After the pivot a saga only goes forward.
    PivotIsFinal,
    /// A key below the low-water mark never runs.
    LowWater,
    /// The low-water mark stops at the first saga that has not ended.
    LowWaterWaits,
    /// A request that differs from the first one under its key is refused.
    BodyHash,
    /// An answer leaves after the sync of its batch.
    SyncBeforeAnswer,
    /// The statement cache is keyed by module and text.
    StatementsPerModule,
    /// The write-ahead log is made durable before the first answer after opening.
    CheckpointOnOpen,
    /// A batch that lost its transaction runs again without the culprit.
    BatchRunsAgain,
    /// Deferred foreign keys are looked at after each piece of work.
    DeferredKeys,
    /// A failed sync stops the database.
    FailedSyncStops,
    /// One process owns a database file.
    OneOwner,
}

static OFF: AtomicU32 = AtomicU32::new(0);

impl Protection {
    /// Always, in builds without debug assertions.
    #[inline]
    pub fn is_on(self) -> bool {
        !cfg!(debug_assertions) || OFF.load(Ordering::Relaxed) & self.bit() == 0
    }

    /// Switches it off in this whole process until the guard is dropped. Tests that do so have a process to
    /// themselves. Without debug assertions it does nothing.
    #[must_use = "the protection comes back when the guard is dropped"]
    pub fn switch_off(self) -> SwitchedOff {
        OFF.fetch_or(self.bit(), Ordering::Relaxed);
        SwitchedOff(self)
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Holds a protection off.
pub struct SwitchedOff(Protection);

impl Drop for SwitchedOff {
    fn drop(&mut self) {
        OFF.fetch_and(!self.0.bit(), Ordering::Relaxed);
    }
}
