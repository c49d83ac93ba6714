//! HTTP at the door: one request to a connection, so many at once, so long, in so much time.

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use slog::debug;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};

use super::{Management, door, routes};

/// Connections at once; others wait.
const CONNECTIONS: usize = 8;
/// The longest head of a request, in bytes, and the most lines in it.
const HEAD: usize = 16 << 10;
const LINES: usize = 64;
/// How long a head may take to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long all of it may take. The guest has less for its part.
const LONGEST: Duration = Duration::from_secs(90);

/// Serves until `ended`.
pub(super) async fn serve(
    listener: UnixListener,
    management: Arc<Management>,
    ended: impl Future<Output = ()>,
) {
    tokio::select! {
        () = accept(listener, management) => {}
        () = ended => {}
    }
}

async fn accept(listener: UnixListener, management: Arc<Management>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    // A semaphore that nobody closes is never closed.
    while let Ok(permit) = free.clone().acquire_owned().await {
        let Some(stream) = door::next(&listener).await else { continue };
        let management = management.clone();
        tokio::spawn(async move {
            converse(stream, management).await;
            drop(permit);
        });
    }
}

async fn converse(stream: UnixStream, management: Arc<Management>) {
    let log = management.log.clone();
    let answer = service_fn(move |request: Request<Incoming>| {
        let management = management.clone();
        async move { Ok::<Response<Full<Bytes>>, Infallible>(routes::answer(&management, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.keep_alive(false).max_buf_size(HEAD).max_headers(LINES);
    match timeout(LONGEST, builder.serve_connection(TokioIo::new(stream), answer)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(log, "management connection"; "why" => error.to_string()),
        Err(_) => debug!(log, "management connection"; "why" => "it took too long"),
    }
}
