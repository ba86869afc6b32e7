//! What an engine offers to the participant and the coordinator inside one transaction.

use std::sync::Arc;

use modulith_core::{Fault, FaultKind, Served, ServedMethod, Statements, Tx};

use crate::inbox::InboxSql;

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
}

/// A module's name and code, as the owner of its database knows it.
pub struct ModuleCode {
    pub name: Arc<str>,
    pub contracts: Vec<Served>,
    pub(crate) inbox: InboxSql,
}

impl ModuleCode {
    pub fn new(name: &str, contracts: Vec<Served>) -> Self {
        Self { name: name.into(), contracts, inbox: InboxSql::new(name) }
    }

    pub fn method(&self, contract: &str, method: &str) -> Option<&ServedMethod> {
        let served = self.contracts.iter().find(|served| served.contract.name == contract)?;
        served.methods.iter().find(|served| served.name == method)
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
        session.act_as(None);
        match (result, swallowed) {
            (Ok(_), Some(fault)) => Err(fault),
            (result, _) => result,
        }
    }

    /// [`ModuleCode::method`], or a fault that names what is missing.
    pub fn expect_method(&self, contract: &str, method: &str) -> Result<&ServedMethod, Fault> {
        self.method(contract, method).ok_or_else(|| {
            Fault::new(FaultKind::Encoding, format!("module `{}` serves no {contract}.{method}", self.name))
        })
    }
}
