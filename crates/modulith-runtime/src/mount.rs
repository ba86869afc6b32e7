//! An application inside somebody else's axum program: one module at a time, beside routes that stay as they are.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use modulith_core::{Client, ContractClient};
use tower::ServiceExt;

use crate::app::App;
use crate::host::{HEALTH, Host, StartError};

/// A monolith without a listener of its own.
pub struct Mounted {
    host: Host,
    drain: Duration,
}

impl App {
    /// Starts all modules in this process, on `data`, and leaves listening to the caller.
    ///
    /// The router has the modules' paths and nothing else, each behind modulith's own edge (deadlines, limits,
    /// problems, sessions); merge it into the program's own. Call [`Mounted::stop`] before the program ends, or
    /// what waits for the writer is only closed by the drop.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the modules; a data folder that another process uses.
    pub async fn mount(self, data: impl AsRef<Path>) -> Result<Mounted, StartError> {
        let topology = self.topology(None)?;
        let host = Host::start(&self, &topology, self.name, data.as_ref()).await?;
        Ok(Mounted { host, drain: topology.gateway.drain() })
    }
}

impl Mounted {
    /// The modules' endpoints and `/admin/…`, for [`Router::merge`]. Health stays the program's business; see
    /// [`Mounted::missing`].
    pub fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        let edge = self.host.edge().map_request(without_extensions);
        let own = self.host.routes.iter().map(|(prefix, _)| prefix).filter(|prefix| !HEALTH.contains(prefix));
        own.fold(Router::new(), |router, prefix| {
            router
                .route_service(prefix, edge.clone())
                .route_service(&format!("{}/{{*rest}}", prefix.trim_end_matches('/')), edge.clone())
        })
    }

    /// A typed client of a mounted module, for the program's own code; `None` if no mounted module serves the
    /// contract. Its calls stay in the process.
    pub fn client<C: ContractClient>(&self) -> Option<C> {
        let link = self.host.answers.hosted.link(C::CONTRACT)?;
        Some(C::from_client(Client::local(Arc::new(link))))
    }

    /// What is missing until the modules are ready; empty when they are.
    pub fn missing(&self) -> Vec<String> {
        self.host.health().missing()
    }

    /// Lets sagas end for up to 10 seconds and closes the database.
    pub async fn stop(self) {
        self.host.stop(self.drain).await;
    }
}

/// The program's own router has matched `{*rest}` and left it in the extensions, where a module's `Path` would
/// take it for one of its own parameters.
fn without_extensions(request: Request) -> Request {
    let (mut parts, body) = request.into_parts();
    parts.extensions = http::Extensions::new();
    Request::from_parts(parts, body)
}
