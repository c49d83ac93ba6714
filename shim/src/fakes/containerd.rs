//! containerd's end: takes events and keeps them as lines such as `exit c1/e1 137`.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use containerd_shim_protos::{
    api::Empty,
    events::task::{
        TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
        TaskStart,
    },
    protobuf::Message,
    shim::events::ForwardRequest,
    shim_async::{Events, create_events},
    ttrpc::{
        self,
        r#async::{Server, TtrpcContext, transport::Listener},
    },
};
use tokio::{net::UnixListener, sync::mpsc};

struct Log(mpsc::UnboundedSender<String>);

#[async_trait]
impl Events for Log {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope();
        assert_eq!(envelope.namespace(), super::stage::NAMESPACE);
        self.0.send(line(envelope.topic(), &envelope.event().value)).unwrap();
        Ok(Empty::new())
    }
}

/// Serves at `socket`; every event comes out of the receiver, in the order of arrival.
pub(super) async fn serve(socket: &Path) -> (Server, mpsc::UnboundedReceiver<String>) {
    let (log, events) = mpsc::unbounded_channel();
    let mut server = Server::new()
        .add_listener(Listener::from(UnixListener::bind(socket).unwrap()))
        .register_service(create_events(Arc::new(Log(log))));
    server.start().await.unwrap();
    (server, events)
}

fn line(topic: &str, event: &[u8]) -> String {
    fn read<E: Message>(event: &[u8]) -> E {
        E::parse_from_bytes(event).unwrap()
    }
    let verb = topic.strip_prefix("/tasks/").unwrap();
    let about = match verb {
        "create" => read::<TaskCreate>(event).container_id,
        "start" => read::<TaskStart>(event).container_id,
        "paused" => read::<TaskPaused>(event).container_id,
        "resumed" => read::<TaskResumed>(event).container_id,
        "oom" => read::<TaskOOM>(event).container_id,
        "exec-added" => with_exec(read::<TaskExecAdded>(event), |e| (e.container_id, e.exec_id)),
        "exec-started" => with_exec(read::<TaskExecStarted>(event), |e| (e.container_id, e.exec_id)),
        "exit" => exit(&read(event)),
        "delete" => with_status(read::<TaskDelete>(event)),
        other => panic!("unknown event {other}"),
    };
    format!("{verb} {about}")
}

fn with_exec<E>(event: E, names: impl FnOnce(E) -> (String, String)) -> String {
    let (container, exec) = names(event);
    format!("{container}/{exec}")
}

fn with_status(event: TaskDelete) -> String {
    format!("{} {}", event.container_id, event.exit_status)
}

fn exit(event: &TaskExit) -> String {
    assert!(event.pid > 0 && event.exited_at.seconds > 0);
    let (container, id) = (&event.container_id, &event.id);
    let process = if id == container { id.clone() } else { format!("{container}/{id}") };
    format!("{process} {}", event.exit_status)
}
