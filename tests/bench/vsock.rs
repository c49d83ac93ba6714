//! How fast the vsock itself is: a stream from the guest to the host with nothing of ours in between.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, socket};
use serde_json::Value;
use tests::bundle::{Bundle, process, spec};
use tests::case::PATIENCE;
use tests::shim::Shim;
use tests::{Case, Context, Failure, Result, check_eq};

/// The argument that makes this program the guest's end.
pub(crate) const SOURCE: &str = "vsock-source";

/// A port nobody else uses: the agent has 1024, its notice of being ready 1025.
const PORT: u32 = 5001;
const LENGTH: usize = 128 << 20;

/// vhost-device-vsock stalls on a guest's write of more than this.
const CHUNK: usize = 32 << 10;

/// The host's context id.
const HOST: u32 = 2;

/// Connects to the host and writes: `<port> <bytes>`.
pub(crate) fn source(mut args: impl Iterator<Item = String>) -> Result<()> {
    let port: u32 = args.next().context("the port")?.parse()?;
    let length: usize = args.next().context("the length")?.parse()?;
    let stream = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(stream.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    let mut stream = File::from(stream);
    let chunk = [0; CHUNK];
    for _ in 0..length / CHUNK {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

/// MB/s from a container in the guest to a Unix socket on the host; nothing where the kernel's vhost-vsock serves,
/// which has no Unix socket.
pub(crate) fn bare_mb_s(case: &Case<'_>) -> Result<Option<f64>> {
    const ID: &str = "bare";
    case.adopt(ID);
    let mut bundle = Bundle::new(case.world, case.dir().join(ID))?;
    bundle.add_layer(layer(&case.dir())?);
    let spec = spec(case.world, &case.namespace, ID, &["sleep", "1000"]);
    bundle.write(&spec)?;
    let shim = Shim::start(case, ID, bundle)?;
    shim.create(None).context("Create")?;
    shim.task.start("").context("Start")?;
    let run_dir = Path::new("/run/kata").join(&case.namespace).join(ID);
    let rate = if run_dir.join("vsock.sock").exists() {
        let source = process(&spec, &source_args(PORT, LENGTH).each_ref().map(String::as_str));
        Some(receive(case, &shim, &run_dir, &source)?)
    } else {
        None
    };
    shim.task.kill("", 9)?;
    shim.task.wait("")?;
    shim.end()?;
    Ok(rate)
}

fn receive(case: &Case<'_>, shim: &Shim, run_dir: &Path, source: &Value) -> Result<f64> {
    let (dir, socket) = (case.dir(), run_dir.join(format!("vsock.sock_{PORT}")));
    let listener = UnixListener::bind(&socket).context(socket.display())?;
    let (received, exec) = thread::scope(|scope| {
        let exec = scope.spawn(|| {
            let result = shim.task.exec_to_end(&dir, "source", source);
            // If the guest never came, this lets the accept below end.
            drop(UnixStream::connect(&socket));
            result
        });
        let received = listener.accept().map_err(Failure::from).and_then(|(stream, _)| drain(stream));
        (received, exec.join())
    });
    fs::remove_file(&socket)?;
    let (status, _, err) = exec.map_err(|_| Failure::new("the exec panicked"))??;
    check_eq!((status, err.as_str()), (0, ""), "status and stderr of the source");
    let (bytes, took) = received?;
    check_eq!(bytes, LENGTH, "bytes that came over the bare vsock");
    Ok(rate(bytes, took))
}

fn drain(mut stream: UnixStream) -> Result<(usize, Duration)> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let began = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    let mut all = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok((all, began.elapsed())),
            length => all += length,
        }
    }
}

/// Megabytes (10^6) per second.
pub(crate) fn rate(bytes: usize, took: Duration) -> f64 {
    bytes as f64 / 1e6 / took.as_secs_f64()
}

fn source_args(port: u32, length: usize) -> [String; 7] {
    // The image has no dynamic loader, so it comes along and is called by name.
    let loader = ["/bench/loader", "--library-path", "/bench", "/bench/program", SOURCE].map(str::to_owned);
    let [a, b, c, d, e] = loader;
    [a, b, c, d, e, port.to_string(), length.to_string()]
}

/// A layer with this program, the loader and the libraries it runs with.
fn layer(dir: &Path) -> Result<PathBuf> {
    let layer = dir.join("layer");
    let into = layer.join("bench");
    fs::create_dir_all(&into)?;
    fs::copy(std::env::current_exe()?, into.join("program"))?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let files = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new);
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("ld-linux") {
            fs::copy(file, into.join("loader"))?;
        } else if name.contains(".so") {
            fs::copy(file, into.join(name))?;
        }
    }
    Ok(layer)
}
