//! The module that is called through the framework, and the context that it is called in.

use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use modulith::{Answer, Context, Module, Never, Principal, Setup, SetupError, Snapshot, contract};
use serde::{Deserialize, Serialize};

use crate::{Message, PATIENCE};

/// What there is to call.
#[contract(name = "echo", version = 1)]
pub trait Echo {
    /// Answers what it was asked. Touches no statement.
    #[query]
    fn echo(&self, db: &Snapshot<'_>, message: Message) -> Answer<Message, Never>;
}

struct EchoModule;

impl Echo for EchoModule {
    fn echo(&self, _: &Snapshot<'_>, message: Message) -> Answer<Message, Never> {
        Ok(message)
    }
}

/// The module.
///
/// # Errors
///
/// None.
pub fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("echo").serves(Echo.serve(EchoModule)))
}

/// What a call says about a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Trace {
    /// It belongs to none.
    Absent,
    /// It belongs to one that was sampled out.
    SampledOut,
}

/// The context of a request, as the edge makes it: its own id, who asks, until when.
pub fn context(user: &Arc<str>, request: &str, trace: Trace) -> Context {
    Context {
        principal: Some(Principal::User(user.clone())),
        deadline: Some(Instant::now() + PATIENCE),
        trace: match trace {
            Trace::Absent => None,
            Trace::SampledOut => Some(modulith::Trace::start(false)),
        },
        ..Context::background(request)
    }
}
