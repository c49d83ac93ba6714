//! What people do with containers.

use std::fs;
use std::process::Command;

use tests::case::PATIENCE;
use tests::command::run;
use tests::docker::{Docker, IMAGE};
use tests::{Result, check, check_eq, eventually, operator};

use crate::listed;

listed!(
    a_container_is_what_runc_would_have_made_it,
    a_container_that_runs_can_be_looked_at_and_changed,
    a_container_that_fails_is_started_again_as_often_as_asked_for,
    the_hosts_network_is_refused,
    what_cannot_be_run_has_the_status_that_runc_gives_it,
);

/// Cases that need the daemon for themselves.
pub(crate) fn alone() -> Vec<crate::Listed> {
    vec![("a_container_outlives_its_daemon", a_container_outlives_its_daemon)]
}

/// Says what a container is, and reads its input; only what does not depend on the kernel.
const TELL: &str = "id; hostname; pwd; echo $WORD; touch /new 2>&1; touch /fresh/file && df -k /fresh | tail -n 1; \
    cat /bound/file /volume/file; echo more >>/bound/file; grep -v '^#' /etc/resolv.conf; grep example /etc/hosts; \
    grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:' /proc/self/status; ulimit -n; df -k /dev/shm | tail -n 1; cat; exit 42";

fn a_container_is_what_runc_would_have_made_it(docker: &Docker) -> Result<()> {
    let dir = docker.dir().join("bound");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("file"), "bound\n")?;
    let bound = format!("{}:/bound:ro", operator::path(&dir));
    docker.says([
        "run",
        "--rm",
        "--volume",
        "told:/volume",
        IMAGE,
        "sh",
        "-c",
        "echo volume >/volume/file",
    ])?;
    let tell = |runtime: &str, name: &str| {
        let flags = "--interactive --user 1000:29 --hostname told --workdir /tmp --env WORD=word --read-only \
            --tmpfs /fresh:size=1m --volume told:/volume:ro --dns 192.0.2.53 --add-host example:192.0.2.7 \
            --cap-drop NET_RAW --security-opt no-new-privileges --ulimit nofile=100:200 --shm-size 5m --network none";
        let first = ["run", "--runtime", runtime, "--name", name, "--volume", &bound];
        docker.run(
            first.into_iter().chain(flags.split_whitespace()).chain([IMAGE, "sh", "-c", TELL]),
            "input\n",
        )
    };
    let reference = tell("runc", "reference")?.exits(42)?.out();
    docker.says(["rm", "reference"])?;
    docker.case(|name| {
        check_eq!(tell("kata", name)?.exits(42)?.out(), reference, "what it says");
        check!(reference.ends_with("input\n"), "it has not read its input: {reference}");
        Ok(())
    })
}

fn what_cannot_be_run_has_the_status_that_runc_gives_it(docker: &Docker) -> Result<()> {
    for (program, status) in [("not-there", 127), ("/etc", 126)] {
        for runtime in ["runc", "kata"] {
            docker.case(|name| {
                docker
                    .run(["run", "--name", name, "--runtime", runtime, IMAGE, program], "")?
                    .exits(status)?;
                Ok(())
            })?;
        }
    }
    Ok(())
}

fn the_hosts_network_is_refused(docker: &Docker) -> Result<()> {
    docker.case(|name| {
        let host = ["run", "--name", name, "--runtime", "kata", "--network", "host", IMAGE, "true"];
        let why = docker.run(host, "")?.exits(125)?.err();
        check!(why.contains("host networking is asked for"), "it says {why}");
        Ok(())
    })
}

fn a_container_that_runs_can_be_looked_at_and_changed(docker: &Docker) -> Result<()> {
    docker.case(|name| {
        let health =
            ["--health-cmd", "test -e /tmp/well", "--health-interval", "1s", "--health-timeout", "30s"];
        let run_it = ["run", "--detach", "--name", name, "--runtime", "kata", "--memory", "300m", "--init"];
        let command = [IMAGE, "sh", "-c", "echo out; echo err >&2; touch /tmp/well; exec sleep 1000000"];
        docker.says(run_it.into_iter().chain(health).chain(command))?;
        eventually(PATIENCE, || {
            let logs = docker.run(["logs", name], "")?.exits(0)?;
            check_eq!((logs.out(), logs.err()), ("out\n".to_owned(), "err\n".to_owned()), "logs");
            Ok(())
        })?;
        execs(docker, name)?;
        let state = |what: &str| docker.says(["inspect", "--format", what, name]);
        eventually(PATIENCE, || {
            check_eq!(state("{{.State.Health.Status}}")?, "healthy", "its health");
            Ok(())
        })?;
        let machine = state("{{.State.Pid}}")?;
        check!(
            docker.says(["top", name, "-o", "pid,comm"])?.contains(&machine),
            "its machine is not in `top`"
        );
        let figures = docker.says(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.NetIO}}", name])?;
        check!(figures.contains("300MiB") && !figures.contains(" 0B / 0B"), "its figures are {figures}");
        docker.says(["update", "--memory", "400m", "--memory-swap", "400m", "--cpus", "0.5", name])?;
        let limits =
            docker.says(["exec", name, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"])?;
        check_eq!(limits, "419430400\n50000 100000", "its limits");
        docker.says(["pause", name])?;
        check_eq!(state("{{.State.Status}}")?, "paused", "its state");
        docker.says(["unpause", name])?;
        docker.says(["exec", name, "true"])?;
        let file = docker.dir().join("copied");
        docker.says(["exec", name, "sh", "-c", "echo copied >/tmp/copied"])?;
        docker.says(["cp", &format!("{name}:/tmp/copied"), &operator::path(&file)])?;
        check_eq!(fs::read_to_string(file)?, "copied\n", "what was copied out");
        // docker-init hands SIGTERM on, and `sleep` ends by it.
        docker.says(["stop", "--time", "30", name])?;
        check_eq!(state("{{.State.Status}} {{.State.ExitCode}}")?, "exited 143", "how it ended");
        docker.says(["start", name])?;
        docker.says(["exec", name, "test", "-e", "/tmp/copied"])?;
        docker.says(["kill", name])?;
        eventually(PATIENCE, || {
            check_eq!(state("{{.State.Status}} {{.State.ExitCode}}")?, "exited 137", "how it ended");
            Ok(())
        })
    })
}

fn execs(docker: &Docker, name: &str) -> Result<()> {
    docker.run(["exec", name, "sh", "-c", "exit 7"], "")?.exits(7)?;
    check_eq!(
        docker.run(["exec", "--interactive", name, "cat"], "input\n")?.exits(0)?.out(),
        "input\n",
        "input"
    );
    let exec = docker.command(["exec", "--interactive", "--tty", name, "sh", "-c", "tty; exit 3"]);
    let words = std::iter::once(exec.get_program()).chain(exec.get_args());
    let line = words.map(|word| format!("'{}'", word.to_string_lossy())).collect::<Vec<_>>().join(" ");
    let mut with_terminal = Command::new("script");
    let said = run(with_terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]), PATIENCE)?;
    check!(said.exits(3)?.out().contains("/dev/pts/"), "it has no terminal");
    Ok(())
}

fn a_container_that_fails_is_started_again_as_often_as_asked_for(docker: &Docker) -> Result<()> {
    docker.case(|name| {
        let again = ["run", "--detach", "--name", name, "--runtime", "kata", "--restart", "on-failure:1"];
        docker.says(again.into_iter().chain([IMAGE, "sh", "-c", "echo came; exit 3"]))?;
        eventually(PATIENCE, || {
            let state =
                ["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}", name];
            check_eq!(docker.says(state)?, "exited 3 1", "how it ended, and how often it was started again");
            Ok(())
        })?;
        check_eq!(docker.says(["logs", name])?, "came\ncame", "what it said");
        Ok(())
    })
}

fn a_container_outlives_its_daemon(docker: &Docker) -> Result<()> {
    docker.case(|name| {
        let command = "i=0; until [ -e /tmp/end ]; do echo $i; i=$((i+1)); sleep 1; done; exit 5";
        docker.says(["run", "--detach", "--name", name, "--runtime", "kata", IMAGE, "sh", "-c", command])?;
        let state = |what: &str| docker.says(["inspect", "--format", what, name]);
        let machine = state("{{.State.Pid}}")?;
        docker.restart()?;
        check_eq!(state("{{.State.Status}} {{.State.Pid}}")?, format!("running {machine}"), "it afterwards");
        docker.says(["exec", name, "ping", "-c", "1", "-w", "20", "172.30.0.1"])?;
        docker.says(["exec", name, "touch", "/tmp/end"])?;
        check_eq!(docker.says(["wait", name])?, "5", "its exit status");
        let logs = docker.says(["logs", name])?;
        let counted: Vec<_> = logs.lines().map(str::to_owned).collect();
        let wanted: Vec<_> = (0..counted.len()).map(|number| number.to_string()).collect();
        check_eq!(counted, wanted, "what it has said");
        Ok(())
    })
}
