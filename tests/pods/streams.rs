//! exec and attach as kubelet has them streamed, asked for by the real `kubectl`.

use k8s_cri::v1::ContainerConfig;
use tests::kubectl::Kubectl;
use tests::pods::PodWorld;
use tests::{Result, check, check_eq};

crate::listed![kubectl_executes_and_attaches];

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
