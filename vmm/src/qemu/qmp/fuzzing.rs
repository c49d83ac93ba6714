//! The way in for the fuzz target: a QEMU that says anything.

use std::time::Duration;

use slog::{Discard, Logger, o};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{
    Qmp, QomGet, QueryBalloon, QueryCpusFast, QueryHotpluggableCpus, QueryMemorySize, QueryMigrate,
    QueryStatus,
};
use crate::qemu::timer;

/// Enough for a peer in the same process.
const PATIENCE: Duration = Duration::from_millis(2);
/// Parts what is said before the first command, after it, after the second and so on; no JSON has it.
const NEXT: u8 = 0xff;

/// Talks to a QEMU that says this.
pub fn qmp(said: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        if let Ok((ours, theirs)) = UnixStream::pair() {
            tokio::join!(ask(ours), say(theirs, said));
        }
    });
}

async fn ask(stream: UnixStream) {
    let log = Logger::root(Discard, o!());
    let Ok((qmp, _)) = Qmp::negotiate(stream, PATIENCE, log).await else { return };
    let mut events = qmp.events();
    // A reply of every shape that there is.
    let _ = qmp.execute(QueryStatus {}).await;
    let _ = qmp.execute(QueryMemorySize {}).await;
    let _ = qmp.execute(QueryHotpluggableCpus {}).await;
    let _ = qmp.execute(QueryCpusFast {}).await;
    let _ = qmp.execute(QueryMigrate {}).await;
    let _ = qmp.execute(QueryBalloon {}).await;
    let _ = qmp.execute(QomGet { path: "/".to_owned(), property: "size" }).await;
    let _ = timer::timer(&qmp).await;
    while events.try_recv().is_ok() {}
}

/// Ends with the other side, so that nothing is written to a closed socket.
async fn say(stream: UnixStream, said: &[u8]) {
    let (read, mut write) = stream.into_split();
    let mut commands = BufReader::new(read).lines();
    for part in said.split(|byte| *byte == NEXT) {
        if write.write_all(part).await.is_err() || !matches!(commands.next_line().await, Ok(Some(_))) {
            return;
        }
    }
}
