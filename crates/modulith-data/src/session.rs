//! What an engine offers to the participant and the coordinator inside one transaction.

use std::cell::RefMut;
use std::sync::{Arc, Weak};

use modulith_core::{AnyBox, Fault, FaultKind, Served, ServedMethod, Statements, Tx};
use parking_lot::Mutex;

use crate::inbox::InboxSql;
use crate::recent::Recent;

/// One piece of work on a database: its statements become durable together or not at all.
///
/// Statements run as the framework, which may touch `<module>__…` tables, until [`Session::act_as`] names a
/// module; then they reach that module's own tables only.
pub trait Session: Statements {
    fn act_as(&mut self, module: Option<&Arc<str>>);
    /// Takes back every statement of this work so far, and nothing of its neighbours in the same commit.
    fn rollback(&mut self) -> Result<(), Fault>;
    fn now_ms(&self) -> i64;
    fn statements(&mut self) -> &mut dyn Statements;
    /// What the writer knows without reading it.
    fn recent(&mut self) -> RefMut<'_, Recent>;
    /// Calls `hook` once it is known whether this work stands: with `true` after the sync of its commit, with
    /// `false` when it was rolled back. After a commit that may or may not stand it is dropped uncalled.
    fn on_end(&mut self, hook: Box<dyn FnOnce(bool) + Send>);
}

/// Begins a saga in the transaction of a command.
pub(crate) trait StartSaga: Send + Sync {
    fn start(&self, session: &mut dyn Session, plan: &str, input: AnyBox) -> Result<(), Fault>;
}

/// A module's name and code, as the owner of its database knows it.
pub struct ModuleCode {
    pub name: Arc<str>,
    pub contracts: Vec<Served>,
    pub(crate) inbox: InboxSql,
    /// The engine of the module's sagas, if it begins any.
    starts: Mutex<Option<Weak<dyn StartSaga>>>,
}

impl ModuleCode {
    pub fn new(name: &str, contracts: Vec<Served>) -> Self {
        Self { name: name.into(), contracts, inbox: InboxSql::new(name), starts: Mutex::new(None) }
    }

    pub(crate) fn set_starts(&self, starts: Weak<dyn StartSaga>) {
        *self.starts.lock() = Some(starts);
    }

    pub fn method(&self, contract: &str, method: &str) -> Option<&ServedMethod> {
        self.contract(contract)?.methods.iter().find(|served| served.name == method)
    }

    fn contract(&self, contract: &str) -> Option<&Served> {
        self.contracts.iter().find(|served| served.contract.name == contract)
    }

    /// Runs `code` with the module's rights; the framework's come back however it ends.
    pub fn with_tx<T>(
        &self,
        session: &mut dyn Session,
        code: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let now_ms = session.now_ms();
        session.act_as(Some(&self.name));
        let mut tx = Tx::new(session.statements(), now_ms);
        // A panic leaves through here; the engine restores the rights before its next statement.
        let result = code(&mut tx);
        let swallowed = tx.fault().cloned();
        let sagas = tx.into_sagas();
        session.act_as(None);
        match (result, swallowed) {
            (Ok(_), Some(fault)) => Err(fault),
            (Ok(done), None) => {
                for (plan, input) in sagas {
                    self.start_saga(session, plan, input)?;
                }
                Ok(done)
            }
            (result, _) => result,
        }
    }

    fn start_saga(&self, session: &mut dyn Session, plan: &str, input: AnyBox) -> Result<(), Fault> {
        let starts = self.starts.lock().as_ref().and_then(Weak::upgrade);
        let starts = starts.ok_or_else(|| {
            Fault::new(FaultKind::Denied, format!("module `{}` begins no saga `{plan}` here", self.name))
        })?;
        starts.start(session, plan, input)
    }

    /// [`ModuleCode::method`], or a fault that names what is missing.
    pub fn expect_method(&self, contract: &str, method: &str) -> Result<&ServedMethod, Fault> {
        self.method(contract, method).ok_or_else(|| {
            Fault::new(FaultKind::Encoding, format!("module `{}` serves no {contract}.{method}", self.name))
        })
    }
}
