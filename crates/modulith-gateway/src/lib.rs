//! The public HTTP edge of modulith: what stands between a client and the modules, in one process or in many.
//!
//! It owns problems and extractors ([`http`]), sessions ([`SessionKeys`]), the edge itself ([`Edge`]), the way
//! to a module by path ([`RouteTable`], [`Merged`]) or to the service that hosts it ([`Gateway`], [`Upstream`],
//! [`Backend`]), and the server loop ([`serve`]). It knows contracts' errors and no modules.
//!
//! ```text
//! monolith   serve <- Edge <- Merged   <- the modules' routers
//! split      serve <- Edge <- Gateway <- Upstream  ~~ frames ~~>  Backend <- the modules' routers
//! ```
//!
//! A client cannot tell the two apart, except by a service that is down.

mod backend;
mod body;
mod edge;
mod gateway;
mod guard;
pub mod http;
mod limited;
mod pressure;
mod request_id;
mod routes;
mod sampling;
mod secret;
mod serve;
mod session;
mod upstream;
mod wire;

pub use backend::Backend;
pub use edge::{CALL, Caller, Edge, Edged, Limits, OPENAPI, REQUEST_TIMEOUT_MS};
pub use gateway::{Gateway, Target};
pub use pressure::{Pressure, PressureSnapshot};
pub use routes::{Merged, RouteProblem, RouteTable};
pub use sampling::Sampling;
pub use secret::{AccessToken, KeyError};
pub use serve::{Listener, serve, serve_stream};
pub use session::{IssueError, SessionKeys, TokenError, Verified};
pub use upstream::{BACK_OFF_MAX, PutHead, Upstream};
