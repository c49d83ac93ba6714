//! What listens in the guest, reached from the pod's network namespace on the host, where containerd looks for it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ConnectResponse;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::case::PATIENCE;
use tests::keeper::Keeper;
use tests::pod_network::PodNetwork;
use tests::{Case, Context, Failure, Result, check, check_eq, eventually, operator};

use crate::listed;
use crate::network::{inside, is_as_before, start};

listed! {
    all: [],
    ours: [
        localhost_of_a_pods_network_namespace_is_the_guests,
        localhost_of_a_machine_that_waited_is_its_pods,
        localhost_is_left_alone_where_the_operator_says_so,
        localhost_of_a_namespace_that_is_no_pods_is_left_alone,
    ]
}

/// What CRI says of a pod's own container. Others have a namespace that may be somebody else's.
const AS_POD: [&str; 2] = ["--annotation", "io.kubernetes.cri.container-type=sandbox"];

/// How long a guest may take to have its ports offered, or a namespace to be as it was.
const SETTLE: Duration = Duration::from_secs(15);

/// How soon it is known that nobody listens.
const SOON: Duration = Duration::from_secs(5);

/// Answers with all it is told, once it has been told all of it.
const ECHO: &str = "(nc -ll -p 7000 -e sh -c 'cat > /tmp/$$; cat /tmp/$$; rm /tmp/$$') > /dev/null 2>&1 &";

const BODY: usize = 4 << 20;

fn localhost_of_a_pods_network_namespace_is_the_guests(case: &Case<'_>) -> Result<()> {
    let network = PodNetwork::new()?;
    let before = network.state()?;
    start(case, &network, "serves", &AS_POD)?;
    inside(case, "serves", ECHO)?;
    inside(case, "serves", "mkdir /www; echo hello > /www/page; httpd -p [::1]:7080 -h /www")?;
    is_offered(&network)?;
    echoes(&network, "127.0.0.1:7000", BODY)?;
    echoes(&network, "[::1]:7000", 1)?;
    several_at_once(&network).context("several at once")?;
    let page = page(&network).context("what listens on ::1 alone")?;
    check!(page.ends_with("hello\n"), "what listens on ::1 alone: {page}");
    is_broken_off_where_nobody_listens(&network)?;
    let open = network.pod.connect("127.0.0.1:7000", PATIENCE)?;
    case.ctr(["task", "kill", "-s", "KILL", "serves"])?.exits(0)?;
    nothing_is_left(&network, open)?;
    is_as_before(&network, &before)
}

fn localhost_of_a_machine_that_waited_is_its_pods(case: &Case<'_>) -> Result<()> {
    let keeper = Keeper::start(case, 1, |_| {})?;
    let waiting = keeper.shims()?;
    let network = PodNetwork::new()?;
    let configuration = operator::path(&keeper.configuration);
    start(case, &network, "waited", &[&AS_POD[..], &["--runtime-config-path", &configuration]].concat())?;
    let shim = case.shim_of("waited")?.plain::<ConnectResponse>("Connect")?.shim_pid;
    check!(waiting.contains(&shim), "the shim {shim} is none of {waiting:?}");
    inside(case, "waited", ECHO)?;
    is_offered(&network)?;
    echoes(&network, "127.0.0.1:7000", BODY / 8)?;
    let open = network.pod.connect("127.0.0.1:7000", PATIENCE)?;
    kill(Pid::from_raw(i32::try_from(shim)?), Signal::SIGKILL)?;
    nothing_is_left(&network, open)
}

fn localhost_is_left_alone_where_the_operator_says_so(case: &Case<'_>) -> Result<()> {
    let configuration = case.configuration(|file| {
        file.set("runtime.enable_port_forward", false);
    })?;
    let network = PodNetwork::new()?;
    let configuration = operator::path(&configuration);
    start(case, &network, "alone", &[&AS_POD[..], &["--runtime-config-path", &configuration]].concat())?;
    inside(case, "alone", ECHO)?;
    // Whatever would offer it has begun before this one had its answer.
    is_refused(&network)?;
    check_eq!(sockets(&network)?, "", "sockets in the pod's namespace");
    Ok(())
}

fn localhost_of_a_namespace_that_is_no_pods_is_left_alone(case: &Case<'_>) -> Result<()> {
    let network = PodNetwork::new()?;
    start(case, &network, "guest", &[])?;
    inside(case, "guest", ECHO)?;
    is_refused(&network)?;
    check_eq!(sockets(&network)?, "", "sockets in the namespace");
    Ok(())
}

/// Nobody tells when that is, nor when the server listens.
fn is_offered(network: &PodNetwork) -> Result<()> {
    eventually(SETTLE, || echoes(network, "127.0.0.1:7000", 1))
}

fn page(network: &PodNetwork) -> Result<String> {
    let mut asks = network.pod.connect("127.0.0.1:7080", PATIENCE)?;
    asks.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
    Ok(String::from_utf8_lossy(&all_of(&mut asks)?).into_owned())
}

fn several_at_once(network: &PodNetwork) -> Result<()> {
    let clients = (0..8).map(|_| network.pod.connect("127.0.0.1:7000", PATIENCE));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    let echoes: Vec<_> =
        clients.into_iter().map(|client| thread::spawn(|| comes_back(client, BODY / 8))).collect();
    echoes.into_iter().try_for_each(|one| one.join().map_err(|_| Failure::new("an echo panicked"))?)
}

fn echoes(network: &PodNetwork, address: &str, size: usize) -> Result<()> {
    comes_back(network.pod.connect(address, PATIENCE)?, size).context(address)
}

/// Half-closes, and has the other half open until all has come back.
fn comes_back(mut client: TcpStream, size: usize) -> Result<()> {
    let body: Vec<u8> = (0..size).map(|at| (at / 7) as u8 ^ (at % 251) as u8).collect();
    client.write_all(&body)?;
    client.shutdown(Shutdown::Write)?;
    let answer = all_of(&mut client)?;
    check!(answer == body, "{} bytes came back of {size}", answer.len());
    Ok(())
}

fn all_of(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

fn is_broken_off_where_nobody_listens(network: &PodNetwork) -> Result<()> {
    for address in ["127.0.0.1:7999", "[::1]:7999"] {
        let since = Instant::now();
        // It may be told before there was time to ask for more.
        let end = network.pod.connect(address, PATIENCE).and_then(|mut client| all_of(&mut client));
        let (end, took) = (format!("{end:?}"), since.elapsed());
        check!(end.contains("reset by peer") && took < SOON, "{address}: {end} after {took:?}");
    }
    Ok(())
}

/// No socket and no program that decides about any; `open` was open before.
fn nothing_is_left(network: &PodNetwork, mut open: TcpStream) -> Result<()> {
    let end = open.read(&mut [0]).map_err(|error| error.kind());
    // In order where the server went first, as the pod's processes do that are killed.
    check!([Ok(0), Err(ErrorKind::ConnectionReset)].contains(&end), "a connection that was open: {end:?}");
    // The kernel keeps what a shim had only just accepted until the other end is closed, too.
    drop(open);
    eventually(SETTLE, || is_refused(network))?;
    check_eq!(sockets(network)?, "", "sockets in the pod's namespace");
    Ok(())
}

fn is_refused(network: &PodNetwork) -> Result<()> {
    let end = format!("{:?}", network.pod.connect("127.0.0.1:7000", SOON));
    check!(end.contains("refused"), "{end}");
    Ok(())
}

/// Other than those that the kernel remembers for a minute.
fn sockets(network: &PodNetwork) -> Result<String> {
    network.pod.says("ss -Htan exclude time-wait")
}
