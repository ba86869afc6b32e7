//! What a module declares: its tables, what it serves, what it needs, its sagas and its HTTP routes.
//!
//! Everything here is declared before anything runs, so that `check`, `graph`, the gateway and the topology read
//! one static model. A module never learns where another one runs.

use std::any::TypeId;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use modulith_core::{
    Client, ContractClient, ContractModel, PlanModel, PlanProblem, Saga, SagaCalls, SagaClient, Served,
};
use modulith_data::Migration;
use modulith_gateway::SessionKeys;
use serde::de::DeserializeOwned;

/// A module of an application.
///
/// ```ignore
/// pub fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
///     Ok(Module::new("orders")
///         .migrations(&migrations!["../migrations/0001_orders.sql"])
///         .serves(Orders.serve(OrdersModule))
///         .needs::<ProductsClient>()
///         .saga::<PlaceOrder>()
///         .routes(&["/orders"], http::routes))
/// }
/// ```
pub struct Module {
    pub(crate) name: &'static str,
    pub(crate) migrations: &'static [Migration],
    pub(crate) serves: Vec<Served>,
    pub(crate) needs: Vec<ContractModel>,
    /// Of the needs, those that may be absent.
    pub(crate) optional: Vec<&'static str>,
    pub(crate) plans: Vec<PlanEntry>,
    pub(crate) prefixes: &'static [&'static str],
    pub(crate) routes: Option<RoutesFn>,
    pub(crate) admin_routes: Option<RoutesFn>,
}

pub(crate) struct PlanEntry {
    pub(crate) name: &'static str,
    pub(crate) saga: TypeId,
    pub(crate) plan: Result<PlanModel, Vec<PlanProblem>>,
}

type RoutesFn = Box<dyn FnOnce(&Links) -> Router + Send>;

impl Module {
    /// `name`: lower-case letters and digits, no underscore; it begins the name of every table of the module.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            migrations: &[],
            serves: Vec::new(),
            needs: Vec::new(),
            optional: Vec::new(),
            plans: Vec::new(),
            prefixes: &[],
            routes: None,
            admin_routes: None,
        }
    }

    /// The module's tables, oldest first; see `migrations!`. Applied when a service that hosts the module
    /// starts; one that was applied and has changed since is refused.
    pub fn migrations(mut self, migrations: &'static [Migration]) -> Self {
        self.migrations = migrations;
        self
    }

    /// A contract with the module's code behind it: `Products.serve(module)`.
    pub fn serves(mut self, served: Served) -> Self {
        self.serves.push(served);
        self
    }

    /// Another module's contract that this one calls, or whose methods stand in its plans.
    pub fn needs<C: ContractClient>(mut self) -> Self {
        self.needs.push(C::model());
        self
    }

    /// A contract that this module calls where somebody serves it, and does without where nobody does: a module, or
    /// an external service that the topology names. [`Links::optional_client`] gives its client.
    pub fn needs_optional<C: ContractClient>(mut self) -> Self {
        self.optional.push(C::CONTRACT);
        self.needs::<C>()
    }

    /// A saga that this module begins.
    pub fn saga<S: Saga>(mut self) -> Self {
        self.plans.push(PlanEntry { name: S::NAME, saga: TypeId::of::<S>(), plan: PlanModel::of::<S>() });
        self
    }

    /// The module's public HTTP endpoints: an ordinary router with full paths, all below one of `prefixes`
    /// (`"/orders"` covers `/orders` and `/orders/…`). No two modules may claim the same prefix.
    pub fn routes(
        mut self,
        prefixes: &'static [&'static str],
        routes: impl FnOnce(&Links) -> Router + Send + 'static,
    ) -> Self {
        self.prefixes = prefixes;
        self.routes = Some(Box::new(routes));
        self
    }

    /// Endpoints for operators, with paths relative to `/admin/<module>`. Callers need the admin token of the
    /// data folder.
    pub fn admin_routes(mut self, routes: impl FnOnce(&Links) -> Router + Send + 'static) -> Self {
        self.admin_routes = Some(Box::new(routes));
        self
    }
}

/// What a module is given when it is declared: its configuration.
pub struct Setup<'a> {
    pub(crate) module: &'a dyn Fn(&str) -> toml::Table,
}

impl Setup<'_> {
    /// The section `[module.NAME]` of the topology file, with `MODULITH_NAME_KEY` from the environment on top.
    ///
    /// # Errors
    ///
    /// A missing, unknown or ill-typed key, by name. Put `#[serde(deny_unknown_fields)]` on `T`.
    pub fn config<T: DeserializeOwned>(&self, module: &'static str) -> Result<T, SetupError> {
        T::deserialize((self.module)(module))
            .map_err(|error| SetupError { module, message: error.message().trim().to_owned() })
    }
}

/// A module's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("[module.{module}]: {message}")]
pub struct SetupError {
    pub module: &'static str,
    pub message: String,
}

/// What a module's endpoints hold on to: clients for its needs and its own contracts, and its sagas.
pub struct Links {
    pub(crate) module: &'static str,
    pub(crate) clients: BTreeMap<&'static str, Client>,
    pub(crate) optional: Vec<&'static str>,
    pub(crate) sagas: Option<Arc<dyn SagaCalls>>,
    pub(crate) plans: Vec<TypeId>,
    pub(crate) session_keys: Arc<SessionKeys>,
}

impl Links {
    /// The client of a contract that the module serves itself or declared as a need.
    ///
    /// # Panics
    ///
    /// When the need was not declared, or declared as one that may be absent, with the line that would mend it.
    pub fn client<C: ContractClient>(&self) -> C {
        match self.clients.get(C::CONTRACT) {
            _ if self.optional.contains(&C::CONTRACT) => panic!(
                "module `{}` can do without contract `{}`; take it with `.optional_client::<{}>()`",
                self.module,
                C::CONTRACT,
                std::any::type_name::<C>(),
            ),
            Some(client) => C::from_client(client.clone()),
            None => panic!(
                "module `{}` calls contract `{}` without declaring it; add `.needs::<{}>()` to the module",
                self.module,
                C::CONTRACT,
                std::any::type_name::<C>(),
            ),
        }
    }

    /// The client of a contract that the module declared with [`Module::needs_optional`]; `None` where this topology
    /// has nobody who serves it. That somebody is there does not mean that it answers.
    ///
    /// # Panics
    ///
    /// When the need was not declared, with the line that would mend it.
    pub fn optional_client<C: ContractClient>(&self) -> Option<C> {
        assert!(
            self.optional.contains(&C::CONTRACT),
            "module `{}` calls contract `{}` without declaring it; add `.needs_optional::<{}>()` to the module",
            self.module,
            C::CONTRACT,
            std::any::type_name::<C>(),
        );
        self.clients.get(C::CONTRACT).cloned().map(C::from_client)
    }

    /// Starts sagas that the module declared.
    ///
    /// # Panics
    ///
    /// When the saga was not declared, with the line that would mend it.
    pub fn saga<S: Saga>(&self) -> SagaClient<S> {
        match &self.sagas {
            Some(sagas) if self.plans.contains(&TypeId::of::<S>()) => SagaClient::new(sagas.clone()),
            _ => panic!(
                "module `{}` starts saga `{}` without declaring it; add `.saga::<{}>()` to the module",
                self.module,
                S::NAME,
                std::any::type_name::<S>(),
            ),
        }
    }

    /// Signs the tokens of signed-in users. The key lives in the data folder.
    pub fn session_keys(&self) -> Arc<SessionKeys> {
        self.session_keys.clone()
    }
}
