//! Services behind the gateway, as connections of the transport: some with routes, some that misbehave.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use modulith_core::{Context, Fault, Principal};
use modulith_gateway::{BACK_OFF_MAX, Backend, Upstream};
use modulith_transport::{
    Address, Handled, Handler, Hello, Incoming, Limits, Listener, Peer, Rejection, Reply, Token, serve,
    serve_connection,
};
use tokio_util::sync::CancellationToken;

fn hello(service: &str) -> Hello {
    let token = Token::new("a token of the tests");
    Hello { service: service.to_owned(), incarnation: [0; 16], token, about: Bytes::new() }
}

/// The head's layout is its user's; the tests have one of their own.
fn put_head(context: &Context, out: &mut Vec<u8>) -> Result<(), Fault> {
    let head = serde_json::to_vec(&(&context.principal, &*context.request_id)).unwrap();
    out.push(head.len() as u8);
    out.extend_from_slice(&head);
    Ok(())
}

pub(crate) fn take_head(call: &Incoming) -> (Context, Bytes) {
    let (head, request) = (call.payload.slice(1..), usize::from(call.payload[0]));
    let (principal, id): (Option<Principal>, String) = serde_json::from_slice(&head[..request]).unwrap();
    let context = Context { principal, deadline: Some(call.deadline), ..Context::background(id) };
    (context, head.slice(request..))
}

pub(crate) fn upstream(addresses: Vec<Address>) -> Upstream {
    let limits = Limits { back_off_max: BACK_OFF_MAX, ..Limits::default() };
    Upstream::new("orders", Peer::new(addresses, hello("gateway"), Arc::new(|_| Ok(())), limits), put_head)
}

/// A handler over routes, as a service has it.
pub(crate) fn routed(backend: Backend) -> impl Handler {
    move |mut call: Incoming| {
        let (context, request) = take_head(&call);
        let handled = backend.handle(context, &request, call.body.take());
        handled.unwrap_or_else(|why| Handled::Now(Err(Rejection::new(why))))
    }
}

/// Listens until the test ends.
pub(crate) async fn listen(address: &str, handler: impl Handler) -> Address {
    let listener = Listener::bind(&address.parse().unwrap()).await.unwrap();
    let address = listener.address().unwrap();
    let admit = Arc::new(|_: &_| Ok(()));
    let until = CancellationToken::new();
    tokio::spawn(serve(listener, hello("orders"), admit, Limits::default(), Arc::new(handler), None, until));
    address
}

/// A service that acts on each call; the token cuts its connection, with what was read and not answered.
pub(crate) async fn acting(
    act: impl Fn(CancellationToken) -> BoxFuture<'static, Reply> + Send + Sync + 'static,
) -> Address {
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.address().unwrap();
    let act = Arc::new(act);
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let cut = CancellationToken::new();
            let handler = {
                let (act, cut) = (act.clone(), cut.clone());
                move |_| {
                    let reply = act(cut.clone());
                    Handled::Later(Box::pin(async move { Ok(reply.await) }))
                }
            };
            let admit = Arc::new(|_: &_| Ok(()));
            let until = CancellationToken::new();
            let served =
                serve_connection(stream, hello("orders"), admit, Limits::default(), Arc::new(handler), until);
            tokio::spawn(async move { cut.run_until_cancelled(served).await });
        }
    });
    address
}

/// Cuts the connection, and does not return.
pub(crate) async fn die<T>(cut: CancellationToken) -> T {
    cut.cancel();
    std::future::pending().await
}
