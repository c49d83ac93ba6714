//! A process in the guest, which does what the test says, and what it reads and writes.

use std::sync::Mutex;

use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

/// A process, by the agent's name of it.
pub(crate) struct InGuest {
    pub(super) container: String,
    pub(super) status: watch::Sender<Option<i32>>,
    pub(super) stdout: Stream<Vec<u8>>,
    pub(super) stderr: Stream<Vec<u8>>,
    /// What was written to it, and whether that has ended.
    pub(super) input: watch::Sender<(Vec<u8>, bool)>,
}

pub(super) struct Stream<T> {
    write: Mutex<Option<mpsc::UnboundedSender<T>>>,
    read: AsyncMutex<mpsc::UnboundedReceiver<T>>,
}

impl<T> Default for Stream<T> {
    fn default() -> Self {
        let (write, read) = mpsc::unbounded_channel();
        Stream { write: Mutex::new(Some(write)), read: AsyncMutex::new(read) }
    }
}

impl<T> Stream<T> {
    pub(super) fn put(&self, item: T) {
        self.write.lock().unwrap().as_ref().unwrap().send(item).unwrap_or_else(|_| panic!("nobody reads"));
    }

    pub(super) fn end(&self) {
        *self.write.lock().unwrap() = None;
    }

    pub(super) async fn take(&self) -> Option<T> {
        self.read.lock().await.recv().await
    }
}

impl InGuest {
    pub(super) fn new(container: &str) -> InGuest {
        InGuest {
            container: container.into(),
            status: watch::Sender::default(),
            stdout: Stream::default(),
            stderr: Stream::default(),
            input: watch::Sender::default(),
        }
    }

    /// Writes in pieces no longer than a reader asks for.
    pub(crate) fn prints(&self, bytes: &[u8]) {
        bytes.chunks(4096).for_each(|piece| self.stdout.put(piece.to_vec()));
    }

    pub(crate) fn prints_error(&self, bytes: &[u8]) {
        bytes.chunks(4096).for_each(|piece| self.stderr.put(piece.to_vec()));
    }

    /// Has the agent answer the next read with all of `bytes`, however many were asked for.
    pub(crate) fn floods(&self, bytes: Vec<u8>) {
        self.stdout.put(bytes);
    }

    /// Ends, with whatever the agent then says its status is.
    pub(crate) fn exits(&self, status: i32) {
        self.stdout.end();
        self.stderr.end();
        self.status.send_if_modified(|known| known.is_none() && known.replace(status).is_none());
    }

    /// Waits for the end of the input and returns all of it.
    pub(crate) async fn reads_to_the_end(&self) -> Vec<u8> {
        let mut input = self.input.subscribe();
        let (bytes, _) = &*input.wait_for(|(_, ended)| *ended).await.unwrap();
        bytes.clone()
    }

    /// Whether the input has ended by now.
    pub(crate) fn has_no_input(&self) -> bool {
        self.input.borrow().1
    }

    /// Waits until so many bytes have come in.
    pub(crate) async fn reads(&self, count: usize) -> Vec<u8> {
        let mut input = self.input.subscribe();
        input.wait_for(|(bytes, _)| bytes.len() >= count).await.unwrap().0.clone()
    }
}
