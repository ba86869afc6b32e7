//! Why a saga needs a person.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a saga needs a person. The codes are stored and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionReason {
    /// Too many attempts in a row had no certain answer. It goes on being tried.
    NoAnswer,
    /// An effect may have happened, and its provider no longer tells whether it did. It is not sent again.
    WindowOver,
    /// This build has no plan of its name, version and structure. It is left alone.
    PlanUnknown,
    /// The process ended too often in a row while it was walked. It is left alone.
    ProcessEnds,
    /// A participant holds it for ended, and has forgotten its steps. It goes on being tried.
    HeldForEnded,
    /// What is recorded of it cannot be read. It is left alone.
    Unreadable,
}

impl AttentionReason {
    const ALL: [(Self, &'static str); 6] = [
        (Self::NoAnswer, "no-answer"),
        (Self::WindowOver, "window-over"),
        (Self::PlanUnknown, "plan-unknown"),
        (Self::ProcessEnds, "process-ends"),
        (Self::HeldForEnded, "held-for-ended"),
        (Self::Unreadable, "unreadable"),
    ];

    pub fn code(self) -> &'static str {
        Self::ALL.into_iter().find(|(reason, _)| *reason == self).map_or("", |(_, code)| code)
    }
}

/// What is kept of a detail: 1,000 characters.
pub const ATTENTION_CHARS_MAX: usize = 1_000;

/// A reason with its circumstances. Stored as `code: detail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attention {
    pub reason: AttentionReason,
    /// For operators, never for clients of the edge.
    pub detail: String,
}

impl Attention {
    pub fn new(reason: AttentionReason, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        if let Some((end, _)) = detail.char_indices().nth(ATTENTION_CHARS_MAX) {
            detail.truncate(end);
        }
        Self { reason, detail }
    }

    /// As it was stored; also by a build that had no codes, or has more of them.
    pub(super) fn of_stored(text: String) -> Self {
        let known = text.split_once(": ").and_then(|(code, detail)| {
            let (reason, _) = AttentionReason::ALL.into_iter().find(|(_, known)| *known == code)?;
            Some(Self::new(reason, detail))
        });
        known.unwrap_or_else(|| Self::new(AttentionReason::NoAnswer, text))
    }
}

impl fmt::Display for Attention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.code(), self.detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_read_as_it_is_stored_and_shown() {
        for (reason, code) in AttentionReason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), code);
            let attention = Attention::new(reason, "step `debit`: no way");
            assert_eq!(Attention::of_stored(attention.to_string()), attention);
        }
        let long = Attention::new(AttentionReason::NoAnswer, "é".repeat(ATTENTION_CHARS_MAX + 1));
        assert_eq!(long.detail, "é".repeat(ATTENTION_CHARS_MAX));
        let old = Attention::of_stored("step 1 has had no certain answer 10 times".into());
        assert_eq!(old.reason, AttentionReason::NoAnswer);
        assert_eq!(old.detail, "step 1 has had no certain answer 10 times");
    }
}
