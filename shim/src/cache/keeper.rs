//! The process of `factory init` that has shims wait.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use configuration::VmCache;
use slog::{Logger, info, warn};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{KEEPER_FD, WAIT, order, title};
use crate::{
    bootstrap,
    error::{Error, Result},
    factory::Kept,
    sandbox::run_dir,
};

/// What whoever connects asks for: a shim whose machine is like what is named next, or how the keeper stands.
pub(super) const TAKE: u8 = b't';
pub(super) const STATUS: u8 = b's';
/// How long they may take to say it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a shim that was taken may have no container before others are made all the same.
const START: Duration = Duration::from_secs(10);
/// How long a machine may take to be made, a template for it included.
const MAKING: Duration = Duration::from_secs(300);
/// How long a shim may take to end before it is killed.
const END: Duration = Duration::from_secs(10);
/// After a shim that came to nothing, the first pause before the next, and the longest.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Where a shim stands that a keeper has started.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// Its machine boots.
    Making,
    /// Its machine is ready, and like that.
    Ready(Like),
    /// It is somebody's, and has the host's processors for itself until its first container runs.
    Starting,
}

/// The name of what a machine is like.
type Like = [u8; Kept::LENGTH];

/// What happens.
enum News {
    /// A shim has come that far; `None` is the end of its keeping.
    Shim(u64, Option<Stage>),
    Asked(Option<Like>, UnixStream),
}

/// Keeps shims waiting until it is asked to end by a signal.
///
/// # Errors
/// Why it cannot; another keeper may be there.
pub(crate) fn keep(file: Option<&Path>, cache: &VmCache, log: &Logger) -> Result<()> {
    let program = Program::of(file)?;
    let _sign = Sign::put_up()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::io("asynchronous runtime"))?.block_on(async {
        let endpoint = &cache.endpoint;
        let Some(listener) = bootstrap::listen(endpoint)? else {
            let what = format!(
                "{}: another process keeps machines ready there: end it, or set another vm_cache_endpoint",
                endpoint.display()
            );
            return Err(Error::FailedPrecondition(what));
        };
        let failed = || Error::io(endpoint.display().to_string());
        listener.set_nonblocking(true).map_err(failed())?;
        let listener = UnixListener::from_std(listener).map_err(failed())?;
        let kept = Keeper::new(&program, cache, log).run(listener).await;
        let _ = fs::remove_file(endpoint);
        kept
    })
}

/// What tells the start action that there is a keeper on this host.
struct Sign(PathBuf);

impl Sign {
    fn put_up() -> Result<Sign> {
        let dir = run_dir::ready();
        fs::create_dir_all(&dir).map_err(Error::io(dir.display()))?;
        let sign = dir.join(format!("keeper-{}", std::process::id()));
        fs::write(&sign, "").map_err(Error::io(sign.display()))?;
        // With the sign in it the directory stays.
        sweep(&dir);
        Ok(Sign(sign))
    }
}

impl Drop for Sign {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        // Not while another keeper is there.
        let _ = self.0.parent().map(fs::remove_dir);
    }
}

/// Removes what is left of keepers and shims that were killed.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let process = name.strip_prefix("keeper-").unwrap_or(&name);
        if Path::new("/proc").join(process).exists() {
            continue;
        }
        if entry.path().is_dir() {
            sweep_one(&entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Removes what is left of a shim that waited, or had just been taken, and has ended.
pub(crate) fn sweep_waiting(shim: u32) {
    let dir = run_dir::ready().join(shim.to_string());
    // Its number may be another's by now.
    if dir.exists() && !Path::new("/proc").join(shim.to_string()).exists() {
        sweep_one(&dir);
    }
}

/// Removes the directory of a waiting shim that has ended, and what it may have left running.
fn sweep_one(dir: &Path) {
    let _ = vmm::sweep(dir);
    let _ = run_dir::remove(dir);
}

struct Keeper<'a> {
    program: &'a Program,
    cache: &'a VmCache,
    log: &'a Logger,
    shims: HashMap<u64, (Stage, UnboundedSender<UnixStream>)>,
    /// What minds them.
    tasks: JoinSet<()>,
    number: u64,
    /// When the next may be made, and how long the pause before it is after one that came to nothing.
    next: (Instant, Duration),
    news: (UnboundedSender<News>, UnboundedReceiver<News>),
}

impl Keeper<'_> {
    fn new<'a>(program: &'a Program, cache: &'a VmCache, log: &'a Logger) -> Keeper<'a> {
        Keeper {
            program,
            cache,
            log,
            shims: HashMap::new(),
            tasks: JoinSet::new(),
            number: 0,
            next: (Instant::now(), PAUSES[0]),
            news: mpsc::unbounded_channel(),
        }
    }

    async fn run(mut self, listener: UnixListener) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("SIGINT"))?;
        info!(self.log, "keeps machines ready"; "machines" => self.cache.machines, "at" => self.cache.endpoint.display().to_string());
        loop {
            let wants = self.wants_another();
            if wants && Instant::now() >= self.next.0 {
                self.begin();
            }
            tokio::select! {
                connection = listener.accept() => self.hears(connection),
                Some(news) = self.news.1.recv() => self.heard(news).await,
                () = sleep_until(self.next.0), if wants => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        info!(self.log, "ends, and with it the machines that nobody has taken");
        // Nobody is to wait for an answer.
        drop(listener);
        self.news.1.close();
        while self.news.1.try_recv().is_ok() {}
        // What is not dropped belongs to sandboxes.
        self.shims.retain(|_, (stage, _)| matches!(stage, Stage::Starting));
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(END * 2, ended).await;
        Ok(())
    }

    fn ready(&self) -> usize {
        self.shims.values().filter(|(stage, _)| matches!(stage, Stage::Ready(_))).count()
    }

    /// One machine is made at a time, and none while somebody waits for a sandbox.
    fn wants_another(&self) -> bool {
        let ready = self.ready();
        ready == self.shims.len() && ready < self.cache.machines as usize
    }

    fn begin(&mut self) {
        let (child, shim) = match self.program.start() {
            Ok(started) => started,
            Err(why) => return self.rest(&why.to_string()),
        };
        self.number += 1;
        let (give, given) = mpsc::unbounded_channel();
        self.shims.insert(self.number, (Stage::Making, give));
        let minded = Minded { number: self.number, child, shim, news: self.news.0.clone() };
        self.tasks.spawn(minded.mind(given));
    }

    /// Does not try again at once what came to nothing.
    fn rest(&mut self, why: &str) {
        let pause = self.next.1;
        warn!(self.log, "a machine came to nothing"; "why" => why, "next_try_s" => pause.as_secs());
        self.next = (Instant::now() + pause, (pause * 2).min(PAUSES[1]));
    }

    fn hears(&self, connection: std::io::Result<(UnixStream, tokio::net::unix::SocketAddr)>) {
        let Ok((mut stream, _)) = connection else { return };
        let own = nix::unistd::geteuid().as_raw();
        if stream.peer_cred().map_or(true, |peer| peer.uid() != own) {
            return;
        }
        let news = self.news.0.clone();
        tokio::spawn(async move {
            if let Ok(Ok(like)) = timeout(PATIENCE, asked(&mut stream)).await {
                let _ = news.send(News::Asked(like, stream));
            }
        });
    }

    async fn heard(&mut self, news: News) {
        match news {
            News::Asked(Some(like), stream) => self.give(&like, stream),
            News::Asked(None, mut stream) => {
                let (ready, all) = (self.ready(), self.cache.machines);
                let text = format!("{ready} of {all} machines are ready\n");
                let _ = timeout(PATIENCE, stream.write_all(text.as_bytes())).await;
            }
            News::Shim(number, Some(stage)) => self.came_to(number, stage),
            News::Shim(number, None) => self.ended(number),
        }
    }

    /// Whoever finds nobody ready hears the end.
    fn give(&mut self, like: &Like, mut stream: UnixStream) {
        for (stage, give) in self.shims.values_mut() {
            if !matches!(stage, Stage::Ready(ready) if ready == like) {
                continue;
            }
            *stage = Stage::Starting;
            self.next = (Instant::now(), PAUSES[0]);
            match give.send(stream) {
                Ok(()) => return,
                // It has ended, which is news to come.
                Err(unsent) => stream = unsent.0,
            }
        }
        info!(self.log, "no machine like that is ready: a sandbox boots one of its own");
    }

    fn came_to(&mut self, number: u64, stage: Stage) {
        if let Some((is, _)) = self.shims.get_mut(&number) {
            *is = stage;
        }
        info!(self.log, "a machine is ready"; "ready" => self.ready(), "of" => self.cache.machines);
    }

    fn ended(&mut self, number: u64) {
        let Some((stage, _)) = self.shims.remove(&number) else { return };
        if !matches!(stage, Stage::Starting) {
            self.rest("its shim has said so on standard error");
        }
    }
}

/// What whoever connects asks for: a machine like that, or nothing but how the keeper stands.
async fn asked(stream: &mut UnixStream) -> std::io::Result<Option<Like>> {
    match stream.read_u8().await? {
        TAKE => {
            let mut like = [0; Kept::LENGTH];
            stream.read_exact(&mut like).await?;
            Ok(Some(like))
        }
        STATUS => Ok(None),
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// What waiting shims are started as.
struct Program {
    /// By the path that it had when the keeper started: whatever takes its place, takes it here.
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    fn of(file: Option<&Path>) -> Result<Program> {
        let path = std::env::current_exe().map_err(Error::io("this program's own path"))?;
        // As the operator has said it, or not: it may be another file by then.
        let file = file.map(Path::to_path_buf).or_else(configuration::file_of_environment);
        let file = file.into_iter().flat_map(|file| [OsString::from("-config"), file.into()]);
        let words = ["factory", WAIT].map(OsString::from);
        let arguments = words.into_iter().chain(file).chain([title::room().into()]).collect();
        Ok(Program { path, arguments })
    }

    /// Starts a shim that waits, in a session of its own.
    fn start(&self) -> Result<(Child, UnixStream)> {
        let failed = || Error::io("a shim that waits");
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed())?;
        ours.set_nonblocking(true).map_err(failed())?;
        let ours = UnixStream::from_std(ours).map_err(failed())?;
        let theirs = OwnedFd::from(theirs);
        let fd = theirs.as_raw_fd();
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        // Named above; that of a shim is containerd's.
        command.env_remove(configuration::FILE_VARIABLE);
        // SAFETY: setsid and what puts the descriptor in its place are async-signal-safe, and the closure touches
        // nothing but the integer it captured.
        unsafe { command.pre_exec(move || bootstrap::settle(fd, KEEPER_FD)) };
        let child = command.spawn().map_err(failed())?;
        Ok((child, ours))
    }
}

/// A shim, its keeper's end of what connects them, and whom to tell.
struct Minded {
    number: u64,
    child: Child,
    shim: UnixStream,
    news: UnboundedSender<News>,
}

impl Minded {
    async fn mind(mut self, mut given: UnboundedReceiver<UnixStream>) {
        let dir = self.child.id().map(|pid| run_dir::ready().join(pid.to_string()));
        if self.wait_and_give(&mut given).await {
            // A task of its own: the keeper does not wait for sandboxes when it ends.
            tokio::spawn(self.let_go(dir));
            return;
        }
        // Whoever is given it from now on hears at once that it is not there.
        drop((self.shim, given));
        if timeout(END, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        dir.iter().for_each(|dir| sweep_one(dir));
        let _ = self.news.send(News::Shim(self.number, None));
    }

    /// It hangs up once its sandbox has a container that runs, and ends whenever that does.
    async fn let_go(mut self, dir: Option<PathBuf>) {
        let _ = timeout(START, self.shim.read_u8()).await;
        self.tell(None);
        drop(self.shim);
        let _ = self.child.wait().await;
        dir.iter().for_each(|dir| sweep_one(dir));
    }

    /// Whether it became ready, and was taken.
    async fn wait_and_give(&mut self, given: &mut UnboundedReceiver<UnixStream>) -> bool {
        let mut like = [0; Kept::LENGTH];
        let ready = tokio::select! {
            said = timeout(MAKING, self.shim.read_exact(&mut like)) => said.is_ok_and(|said| said.is_ok()),
            // The keeper ends.
            none = given.recv() => none.is_some(),
        };
        if !ready {
            return false;
        }
        self.tell(Some(Stage::Ready(like)));
        let stream = tokio::select! {
            stream = given.recv() => stream,
            // It has ended.
            _ = self.shim.read_u8() => None,
        };
        let fd = stream.and_then(|stream| stream.into_std().ok());
        fd.is_some_and(|fd| order::send(&self.shim, &[TAKE], &fd).is_ok())
    }

    fn tell(&self, stage: Option<Stage>) {
        let _ = self.news.send(News::Shim(self.number, stage));
    }
}
