//! exec, attach and forwarded ports as kubelet has them streamed, asked for by the real `kubectl`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use k8s_cri::v1::ContainerConfig;
use tests::kubectl::Kubectl;
use tests::pods::PodWorld;
use tests::{Context, Failure, Result, check, check_eq};

crate::listed![kubectl_executes_and_attaches, kubectl_forwards_ports];

fn kubectl_executes_and_attaches(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let script = "while read -r line; do echo got $line; done; echo over";
        let reads =
            ContainerConfig { stdin: true, stdin_once: true, ..pod.container("reads", ["sh", "-c", script]) };
        let (waits, reads) = (pod.run(&pod.container("waits", ["sleep", "1000"]))?, pod.run(&reads)?);
        let kubectl = Kubectl::new(pod, &[&waits, &reads])?;
        let exec = |options: &[&str], command: &[&str], stdin: &[u8]| {
            let verb: Vec<&str> = ["exec"].iter().chain(options).copied().collect();
            kubectl.run(&verb, &waits, command, stdin)
        };

        let plain = exec(&[], &["sh", "-c", "echo out; echo err >&2"], b"")?.exits(0)?;
        check_eq!((plain.out().as_str(), plain.err().as_str()), ("out\n", "err\n"), "what each stream says");
        check_eq!(exec(&[], &["sh", "-c", "exit 3"], b"")?.status, 3, "the exit status");
        let missing = exec(&[], &["no-such-program"], b"")?;
        check!(missing.status != 0 && missing.err().contains("no-such-program"), "{}", missing.err());
        // A stream without input goes on after its first words.
        let late = exec(&[], &["sh", "-c", "echo one; sleep 2; echo two"], b"")?.exits(0)?;
        check_eq!(late.out(), "one\ntwo\n", "words with a pause between them");
        // One with input ends with that, also where there is none.
        check_eq!(exec(&["-i"], &["cat"], b"all of it\n")?.exits(0)?.out(), "all of it\n", "input and back");
        check_eq!(exec(&["-i"], &["cat"], b"")?.exits(0)?.out(), "", "no input and back");
        let big = "x".repeat(1 << 20);
        let counted = exec(&["-i"], &["sh", "-c", "echo begun; wc -c"], big.as_bytes())?.exits(0)?.out();
        check_eq!(counted, format!("begun\n{}\n", big.len()), "a MiB of input");
        let many = exec(&[], &["sh", "-c", "yes | head -c 4194304"], b"")?.exits(0)?;
        check_eq!(many.stdout.len(), 4 << 20, "bytes of output");

        let attached = kubectl.run(&["attach", "-i"], &reads, &[], b"hello\n")?.exits(0)?;
        check_eq!(attached.out(), "got hello\nover\n", "what a container says to whoever is attached to it");
        Ok(())
    })
}

/// A server on the pod's loopback alone, which says what it is told.
const SERVER: &str = "mkdir -p /www/cgi-bin && cd /www/cgi-bin && \
    printf '#!/bin/sh\\nprintf \"Content-Type: a/b\\\\r\\\\n\\\\r\\\\n\"\\nexec cat\\n' > echo && chmod 755 echo && \
    httpd -p 127.0.0.1:7080 -h /www && cat echo";

/// Bytes of one request.
const BODY: usize = 1 << 20;

fn kubectl_forwards_ports(world: &PodWorld) -> Result<()> {
    world.pod(world.config(), |pod| {
        let id = pod.run(&pod.container("serves", ["sleep", "1000"]))?;
        pod.sh(&id, SERVER)?;
        let kubectl = Kubectl::new(pod, &[&id])?;
        let forward = kubectl.forward(7080)?;
        echoes(forward.connect()?, 1)?;
        let clients = (2..6).map(|seed| Ok((forward.connect()?, seed))).collect::<Result<Vec<_>>>()?;
        let several: Vec<_> =
            clients.into_iter().map(|(client, seed)| thread::spawn(move || echoes(client, seed))).collect();
        several
            .into_iter()
            .try_for_each(|one| one.join().map_err(|_| Failure::new("an echo panicked"))?)?;
        nobody_listens(&kubectl)
    })
}

/// All of a request that is not small, and all of it back.
fn echoes(mut client: TcpStream, seed: u8) -> Result<()> {
    let body: Vec<u8> = (0..BODY).map(|at| (at / 7) as u8 ^ (at % 251) as u8 ^ seed).collect();
    let mut sender = client.try_clone()?;
    let head = format!("POST /cgi-bin/echo HTTP/1.0\r\nContent-Length: {BODY}\r\n\r\n");
    let request = [head.as_bytes(), &body].concat();
    let sends = thread::spawn(move || sender.write_all(&request));
    let mut answer = Vec::new();
    let ended = client.read_to_end(&mut answer);
    ended.context(format_args!("the answer, after {} bytes of it", answer.len()))?;
    sends.join().map_err(|_| Failure::new("the sender panicked"))??;
    let from = answer.len().saturating_sub(BODY);
    let head = String::from_utf8_lossy(&answer[..from.min(200)]).into_owned();
    check!(answer[from..] == body, "{} bytes came back, after {head}", answer.len());
    Ok(())
}

/// containerd is told so by a reset, which some of its versions tell `kubectl` as an error, and others by hanging up.
fn nobody_listens(kubectl: &Kubectl) -> Result<()> {
    let forward = kubectl.forward(7081)?;
    let since = Instant::now();
    let mut said = Vec::new();
    // kubectl hangs up, in order or not.
    let ended = forward.connect()?.read_to_end(&mut said);
    let took = since.elapsed();
    check!(said.is_empty() && took < Duration::from_secs(10), "{ended:?} and {said:?} after {took:?}");
    Ok(())
}
