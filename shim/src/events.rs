//! Task events, in order, to containerd. The queue outlives a restart of containerd.

use std::time::Duration;

use containerd_shim::{
    event::Event,
    util::{convert_to_any, timestamp},
};
use containerd_shim_protos::{
    shim::{event::Envelope, events::ForwardRequest},
    shim_async::{Client, EventsClient},
    ttrpc::{r#async::transport::Socket, context},
};
use slog::{Logger, warn};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

/// Events kept while containerd does not take them. Beyond it the newest are dropped, and counted in the log.
const QUEUE: usize = 4096;
/// How long an event is offered before it is given up: longer than any restart of containerd.
const KEEP: Duration = Duration::from_secs(300);
/// One attempt, and the pause between attempts.
const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(200);
/// How long the end of the shim waits for the last events.
const FLUSH: Duration = Duration::from_secs(5);

/// Where the shim's parts put their events. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<ForwardRequest>,
    namespace: String,
    log: Logger,
}

/// The task that delivers. [`Delivery::finish`] waits for what is queued.
pub(crate) struct Delivery {
    task: tokio::task::JoinHandle<()>,
    last: oneshot::Sender<()>,
}

impl Events {
    /// Starts delivering to containerd's ttrpc `address` on behalf of `namespace`.
    pub(crate) fn to(address: &str, namespace: &str, log: Logger) -> (Events, Delivery) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let address = address.to_string();
        let (last, closing) = oneshot::channel();
        let task = tokio::spawn(deliver(address, waiting, closing, log.clone()));
        (Events { queue, namespace: namespace.to_string(), log }, Delivery { task, last })
    }

    /// Queues one event; never waits.
    pub(crate) fn publish(&self, event: impl Event) {
        let topic = event.topic();
        let (Ok(time), Ok(body)) = (timestamp(), convert_to_any(Box::new(event))) else { return };
        let mut envelope = Envelope::new();
        envelope.set_topic(topic.clone());
        envelope.set_namespace(self.namespace.clone());
        envelope.set_timestamp(time);
        envelope.set_event(body);
        let mut request = ForwardRequest::new();
        request.set_envelope(envelope);
        if self.queue.try_send(request).is_err() {
            warn!(self.log, "event dropped: containerd has not taken the {QUEUE} before it"; "topic" => topic);
        }
    }
}

impl Delivery {
    /// Ends once everything queued has been delivered, or after five seconds. What is published later is dropped.
    pub(crate) async fn finish(self) {
        // Late events of a shim that ends are lost with it; there is nobody left to tell.
        let _ = self.last.send(());
        let _ = timeout(FLUSH, self.task).await;
    }
}

async fn deliver(
    address: String,
    mut waiting: mpsc::Receiver<ForwardRequest>,
    mut closing: oneshot::Receiver<()>,
    log: Logger,
) {
    let mut connection = None;
    loop {
        let next = tokio::select! {
            biased;
            next = waiting.recv() => next,
            _ = &mut closing, if !waiting.is_closed() => {
                waiting.close();
                continue;
            }
        };
        let Some(request) = next else { return };
        let given_up = Instant::now() + KEEP;
        while !offer(&address, &mut connection, &request).await {
            if Instant::now() > given_up {
                warn!(log, "event dropped: containerd did not take it"; "topic" => request.envelope().topic.clone());
                break;
            }
            sleep(PAUSE).await;
        }
    }
}

/// One attempt over the connection there is, or a new one.
async fn offer(address: &str, connection: &mut Option<EventsClient>, request: &ForwardRequest) -> bool {
    let attempt = async {
        let client = match connection.take() {
            Some(client) => client,
            None => EventsClient::new(Client::new(Socket::connect(url(address)).await.ok()?)),
        };
        client.forward(context::with_timeout(ATTEMPT.as_nanos() as i64), request).await.ok()?;
        Some(client)
    };
    *connection = timeout(ATTEMPT, attempt).await.ok().flatten();
    connection.is_some()
}

fn url(address: &str) -> String {
    if address.starts_with("unix://") { address.to_string() } else { format!("unix://{address}") }
}
