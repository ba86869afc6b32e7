//! What an effect relies on at its provider.
//!
//! An outcome that is not known has to become known in one of three ways: by a repeat of the same bytes while the
//! provider still recognises the key, by a look under that key afterwards, or by a person.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::Effect;
use crate::key::StepKey;
use crate::outcome::Never;

/// The window of an effect that declares none: 24 hours, as Stripe documents for its idempotency keys.
pub const EFFECT_WINDOW_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// How long after the end of the window a provider is first asked what it has: 5 minutes. The last attempt may leave
/// at the very end of the window and take 30 s, and a provider's index may lag behind what it did (Stripe's search by
/// about a minute). Asked sooner, it could answer *nothing* about what is on its way.
pub const LOOK_UP_DELAY: Duration = Duration::from_secs(5 * 60);

/// What is known of the provider of one effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProviderModel {
    /// How long it recognises an idempotency key, from the first attempt. Nothing is sent again past it.
    pub window: Duration,
    /// The method of the same contract that finds what was done under a key. Without one, an outcome that is unknown
    /// past the window is a matter for a person.
    pub look_up: Option<&'static str>,
}

impl ProviderModel {
    /// Of an effect that declares nothing.
    pub const DEFAULT: Self = Self { window: EFFECT_WINDOW_DEFAULT, look_up: None };
}

impl<Req, T, E> Effect<Req, T, E> {
    /// The token of an effect whose provider recognises a key for so long.
    pub const fn window(mut self, window: Duration) -> Self {
        self.provider.window = window;
        self
    }

    /// The token of an effect whose outcome the other one, of the same contract, can find. Only an effect that
    /// answers with this one's answer and refusal can.
    pub const fn look_up(mut self, look_up: Effect<StepKey, Found<T, E>, Never>) -> Self {
        self.provider.look_up = Some(look_up.method);
        self
    }
}

/// What a provider has under a key: the answer of a look-up. A look-up that cannot tell fails with *not run* or
/// *unknown*, and is asked again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Found<T, E> {
    /// It happened; the effect's answer.
    Done(T),
    /// The provider declined; the effect's refusal.
    Refused(E),
    /// It never happened, and no attempt is on its way: the effect certainly did not run, and may be attempted again.
    Nothing,
}
