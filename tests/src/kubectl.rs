//! The real `kubectl` before containerd's CRI: what an API server and kubelet do for its streams, and no more.
//!
//! Both only pass the bytes on, so what `kubectl` and containerd say to each other is theirs.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::command::{Output, start};
use crate::cri::{Cri, Streams};
use crate::pods::{Pod, in_network_of};
use crate::{Context, Failure, Result, fail};

/// Longest time for one command.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest head of a request.
const HEAD: u64 = 64 << 10;

/// `kubectl` with a server that knows one pod, whose name is this, with its containers called by their ids.
pub struct Kubectl {
    config: PathBuf,
    home: PathBuf,
}

/// The one pod's name.
const POD: &str = "pod";

impl Kubectl {
    /// A server for the containers of `pod` with these ids, for as long as the process lives.
    pub fn new(pod: &Pod<'_>, containers: &[&str]) -> Result<Kubectl> {
        let world = pod.world;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let containers: Vec<_> =
            containers.iter().map(|id| json!({ "name": id, "image": "busybox" })).collect();
        let server = Arc::new(Server {
            cri: Cri::connect(&world.containerd_socket())?,
            host: world.host(),
            sandbox: pod.id.clone(),
            pod: json!({
                "kind": "Pod", "apiVersion": "v1", "metadata": { "name": POD, "namespace": "default" },
                "spec": { "containers": containers }, "status": { "phase": "Running" },
            }),
        });
        thread::spawn(move || {
            for asker in listener.incoming().flatten() {
                let server = server.clone();
                // A command that was ended leaves its connection.
                thread::spawn(move || server.serve(asker));
            }
        });
        let home = world.dir().join(format!("kubectl-{}", address.port()));
        fs::create_dir(&home)?;
        let config = home.join("config");
        fs::write(&config, configuration(&address.to_string()))?;
        Ok(Kubectl { config, home })
    }

    fn command(&self) -> Command {
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--kubeconfig").arg(&self.config).env("HOME", &self.home);
        // What clients since 1.31 try first, containerd does not know before 2.0, and they say so.
        kubectl.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false");
        // What API servers since 1.30 translate for kubelet.
        kubectl.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        kubectl
    }

    /// Runs `kubectl port-forward` to a port of the pod, until it is dropped.
    pub fn forward(&self, port: u16) -> Result<Forward> {
        let (mut kubectl, errors) = (self.command(), self.home.join("errors"));
        kubectl.args(["port-forward", "--address", "127.0.0.1", POD, &format!(":{port}")]);
        let mut child =
            kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors)?).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("its output")?);
        let mut forward = Forward { child, stdout, local: 0 };
        // It ends, or says this, when it has an answer.
        let mut first = String::new();
        forward.stdout.read_line(&mut first)?;
        let local = first.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split_once(' '));
        match local {
            Some((local, _)) => forward.local = local.parse()?,
            None => fail!("kubectl port-forward: {first}{}", fs::read_to_string(&errors)?),
        }
        Ok(forward)
    }

    /// Runs `kubectl <verb> [options] pod -c <container> [-- command]` with `stdin`.
    pub fn run(&self, verb: &[&str], container: &str, command: &[&str], stdin: &[u8]) -> Result<Output> {
        let mut kubectl = self.command();
        kubectl.args(verb).args([POD, "-c", container]);
        if !command.is_empty() {
            kubectl.arg("--").args(command.iter().map(OsStr::new));
        }
        start(&mut kubectl, stdin.to_vec())?.wait(PATIENCE)
    }
}

/// A `kubectl port-forward` that runs.
pub struct Forward {
    child: Child,
    /// It says more, and would end if nobody listened.
    stdout: BufReader<ChildStdout>,
    local: u16,
}

impl Forward {
    /// A connection to the pod's port, which gives up a read or a write that takes longer than a command may.
    pub fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.local))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(server: &str) -> String {
    let cluster = json!([{ "name": "one", "cluster": { "server": format!("http://{server}") } }]);
    let context = json!([{ "name": "one", "context": { "cluster": "one", "user": "one" } }]);
    json!({
        "kind": "Config", "apiVersion": "v1", "clusters": cluster, "contexts": context,
        "users": [{ "name": "one", "user": {} }], "current-context": "one",
    })
    .to_string()
}

struct Server {
    cri: Cri,
    /// containerd's process, in whose network namespace it listens.
    host: u32,
    sandbox: String,
    pod: Value,
}

/// The first line of a request and what follows, up to the empty line.
struct Request {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    /// With the line's end after each.
    headers: String,
}

impl Server {
    fn serve(&self, asker: TcpStream) -> Result<()> {
        let mut reader = BufReader::new(asker.try_clone()?);
        let request = Request::read(&mut reader)?;
        let path = request.path.clone();
        let found = match path.trim_start_matches('/').split('/').collect::<Vec<_>>().as_slice() {
            ["version"] => json!({ "major": "1", "minor": "26", "gitVersion": "v1.26.0" }),
            ["api"] => json!({ "kind": "APIVersions", "versions": ["v1"] }),
            ["apis"] => json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }),
            ["api", "v1"] => resources(),
            ["api", "v1", "namespaces", "default", "pods", POD] => self.pod.clone(),
            [
                "api",
                "v1",
                "namespaces",
                "default",
                "pods",
                POD,
                verb @ ("exec" | "attach" | "portforward"),
            ] => {
                return self.stream(verb, &request, reader, asker);
            }
            _ => return answer(asker, "404 Not Found", &json!({ "kind": "Status", "code": 404 })),
        };
        answer(asker, "200 OK", &found)
    }

    /// As kubelet, asks CRI where the stream is to be had; as the API server, passes it on.
    fn stream(
        &self,
        verb: &str,
        request: &Request,
        mut reader: BufReader<TcpStream>,
        asker: TcpStream,
    ) -> Result<()> {
        let url = self.url(verb, request)?;
        let (address, path) =
            url.strip_prefix("http://").and_then(|url| url.split_once('/')).context(&url)?;
        let mut streamer = self.connect(address)?;
        write!(streamer, "{} /{path} HTTP/1.1\r\n{}\r\n", request.method, request.headers)?;
        let (mut back, mut to) = (streamer.try_clone()?, asker);
        let backwards = thread::spawn(move || {
            let _ = copy(&mut back, &mut to);
            to.shutdown(Shutdown::Write)
        });
        copy(&mut reader, &mut streamer)?;
        streamer.shutdown(Shutdown::Write)?;
        backwards.join().map_err(|_| Failure::new("the way back panicked"))??;
        Ok(())
    }

    fn url(&self, verb: &str, request: &Request) -> Result<String> {
        if verb == "portforward" {
            // The ports are said with each stream.
            return self.cri.port_forward_url(&self.sandbox, Vec::new());
        }
        let query: HashMap<_, _> = request.query.iter().map(|(key, value)| (&**key, &**value)).collect();
        let is = |key| query.get(key).is_some_and(|value| ["true", "1"].contains(value));
        let streams =
            Streams { stdin: is("stdin"), stdout: is("stdout"), stderr: is("stderr"), tty: is("tty") };
        let container = *query.get("container").context("a container's name")?;
        if verb == "attach" {
            return self.cri.attach_url(container, streams);
        }
        let words = request.query.iter().filter(|(key, _)| key == "command");
        self.cri.exec_url(container, words.map(|(_, word)| word.clone()).collect(), streams)
    }

    /// To a port of the namespace that containerd is in, which is a thread's to enter.
    fn connect(&self, address: &str) -> Result<TcpStream> {
        let address = address.to_owned();
        let dial = in_network_of(self.host, move || TcpStream::connect(&address).context(&address))?;
        dial.join().map_err(|_| Failure::new("the thread that dials panicked"))?
    }
}

impl Request {
    fn read(reader: &mut impl BufRead) -> Result<Request> {
        let mut reader = reader.take(HEAD);
        let (mut first, mut headers) = (String::new(), String::new());
        reader.read_line(&mut first)?;
        let mut words = first.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            fail!("no request: {first:?}")
        };
        loop {
            let from = headers.len();
            if reader.read_line(&mut headers)? == 0 || headers[from..].trim().is_empty() {
                headers.truncate(from);
                break;
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(key, value)| (decoded(key), decoded(value))).collect();
        Ok(Request { method: method.to_owned(), path: path.to_owned(), query, headers })
    }
}

/// `application/x-www-form-urlencoded`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| after.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(if first == b'+' { b' ' } else { first }));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resources() -> Value {
    let pods =
        json!({ "name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get"] });
    json!({ "kind": "APIResourceList", "groupVersion": "v1", "resources": [pods] })
}

fn answer(mut asker: TcpStream, status: &str, body: &Value) -> Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        asker,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}
