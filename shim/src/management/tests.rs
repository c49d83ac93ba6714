//! What tools get to hear, on the fakes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use agent_client::{AgentClient, Code, Timeouts};
use base64::{Engine, engine::general_purpose::URL_SAFE};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::exposition;
use crate::fakes::{Shim, later, on_fakes, settled};

/// The sandbox of all tests, where tools look for it.
const DOOR: &str = "/run/vc/sbs/c1/shim-monitor.sock";
const VOLUME: &str = "/var/lib/kubelet/pods/1/volumes/data";
const NOTES: &str = "/run/kata-containers/shared/direct-volumes";

/// Status and body of the answer to what is sent.
async fn sent(request: &[u8]) -> (u16, String) {
    let mut stream = UnixStream::connect(DOOR).await.unwrap();
    // A door may close before it has heard all.
    let _ = stream.write_all(request).await;
    heard(stream).await
}

async fn heard(mut stream: UnixStream) -> (u16, String) {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
    (status, body.to_owned())
}

async fn ask(method: &str, target: &str, body: &str) -> (u16, String) {
    let length = body.len();
    sent(
        format!("{method} {target} HTTP/1.1\r\nHost: shim\r\nContent-Length: {length}\r\n\r\n{body}")
            .as_bytes(),
    )
    .await
}

async fn get(target: &str) -> (u16, String) {
    ask("GET", target, "").await
}

#[test]
fn c22_metrics_are_those_of_the_shim_the_hypervisor_and_the_guest() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.counts(
            "# TYPE kata_guest_load gauge\nkata_guest_load{item=\"load1\"} 1\nkata_shim_threads 99\n",
        );
        let (status, text) = get("/metrics").await;
        assert_eq!(status, 200, "{text}");
        let names = exposition::names(&text);
        for name in [
            "kata_shim_threads",
            "kata_shim_fds",
            "kata_shim_proc_stat",
            "kata_shim_proc_status",
            "kata_shim_io_stat",
            "kata_shim_process_cpu_seconds_total",
            "kata_shim_agent_rpc_durations_histogram_milliseconds",
            "kata_shim_pod_overhead_memory_in_bytes",
            "kata_hypervisor_threads",
            "kata_hypervisor_proc_status",
            "kata_guest_load",
        ] {
            assert!(names.contains(name), "{name} in {text}");
        }
        assert!(!text.contains("kata_shim_threads 99"), "a guest has no figures but its own: {text}");
        assert!(!names.contains("kata_shim_pod_overhead_cpu"), "there is no time yet to say: {text}");
        assert!(get("/metrics").await.1.contains("\nkata_shim_pod_overhead_cpu "));
        let address = fs::read_to_string(shim.dir.path().join("c1/monitor_address")).unwrap();
        assert_eq!(address, format!("unix://{DOOR}"));
    });
}

#[test]
fn c22_a_guest_that_hangs_or_has_no_metrics_costs_only_its_own() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        shim.guest.counts("kata_guest_load 1\n");
        shim.guest.refuses("GetMetrics", Code::UNIMPLEMENTED, "no such call");
        let (status, text) = get("/metrics").await;
        assert!(status == 200 && text.contains("kata_shim_pod_overhead_memory_in_bytes"), "{text}");
        shim.guest.never_answers("GetMetrics");
        let asked = tokio::spawn(get("/metrics"));
        while shim.guest.asked(&["GetMetrics"]).len() < 2 {
            tokio::task::yield_now().await;
        }
        later(Duration::from_secs(3)).await;
        let (status, text) = asked.await.unwrap();
        assert!(
            status == 200 && text.contains("kata_hypervisor_threads") && !text.contains("kata_guest"),
            "{text}"
        );
    });
}

#[test]
fn c22_what_nobody_answers_is_refused_with_words() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        for (method, target, body, status, words) in [
            ("GET", "/", "", 404, "no such thing"),
            ("GET", "/metrics/x", "", 404, "no such thing"),
            ("GET", "/debug/pprof/", "", 404, "no such thing"),
            ("POST", "/metrics", "", 501, "takes GET, not POST"),
            ("DELETE", "/iptables", "", 501, "takes GET and PUT"),
            ("GET", "/direct-volume/resize", "", 501, "takes POST"),
            ("GET", "/direct-volume/stats", "", 400, "path"),
            ("GET", "/direct-volume/stats?path=%2Fsrv", "", 404, "/srv"),
            ("POST", "/direct-volume/resize", "{}", 400, "VolumePath"),
            ("POST", "/direct-volume/resize", r#"{"VolumePath": "/srv", "Size": 1}"#, 404, "/srv"),
            ("PUT", "/policy", "package x", 501, "SetPolicy"),
        ] {
            let (is, text) = ask(method, target, body).await;
            assert!(is == status && text.contains(words), "{method} {target}: {is} {text}");
        }
        assert_eq!(ask("PUT", "/policy", &"x".repeat(2 << 20)).await.0, 413);
        assert_eq!(sent(b"\x16\x03\x01 what\r\n\r\n").await.0, 400);
        let long = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "x".repeat(1 << 20));
        assert_eq!(sent(long.as_bytes()).await.0, 431);
    });
}

/// The page for operators.
const PAGE: &str = include_str!("../../../docs/metrics.md");

#[test]
fn c22_every_request_that_operators_read_of_is_known() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let requests = PAGE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let requests: Vec<_> = requests
            .filter_map(|(request, _)| request.split_once(' '))
            .filter(|(_, target)| target.starts_with('/'))
            .collect();
        assert_eq!(requests.len(), 9);
        for (method, target) in requests {
            let (status, words) = ask(method, target.split('?').next().unwrap(), "").await;
            let is_unknown = words.contains("no such thing") || words.contains(" takes ");
            assert!(status != 0 && !is_unknown, "{method} {target}: {status} {words}");
        }
    });
}

#[test]
fn c22_rules_of_the_packet_filter_are_the_guests() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        assert_eq!(get("/iptables").await, (200, "rules of 4".into()));
        assert_eq!(get("/ip6tables").await, (200, "rules of 6".into()));
        assert_eq!(ask("PUT", "/ip6tables", "*filter").await, (200, String::new()));
        shim.guest.is_asked("SetIPTables 6 *filter").await;
        shim.guest.refuses("GetIPTables", Code::UNIMPLEMENTED, "no iptables here");
        let (status, words) = get("/iptables").await;
        assert!(status == 501 && words.contains("no iptables here"), "{words}");
        shim.guest.refuses("SetIPTables", Code::INVALID_ARGUMENT, "line 1");
        assert_eq!(ask("PUT", "/iptables", "x").await.0, 400);
    });
}

#[test]
fn c22_programs_of_the_host_reach_the_agent_through_the_shim_where_the_vsock_is_its() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let socket = "/run/kata/tests/c1/vsock.sock";
        assert_eq!(get("/agent-url").await, (200, format!("hvsock://{socket}:1024")));
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(b"CONNECT 1024\n").await.unwrap();
        let mut line = [0; 14];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"OK 1073741824\n");
        AgentClient::over(stream, Timeouts::default()).check().await.unwrap();
        // Where nobody listens, and what is no question.
        for asked in ["CONNECT 7\n", "CONNECT x\n", "GET / HTTP/1.1\r\n\r\n", &"x".repeat(100)] {
            let mut stream = UnixStream::connect(socket).await.unwrap();
            stream.write_all(asked.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty(), "{asked}");
        }
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(b"CONNECT 1024\n").await.unwrap();
        stream.read_exact(&mut line).await.unwrap();
        shim.machine.dies().await;
        shim.published(1).await;
        assert_eq!(stream.read(&mut line).await.unwrap_or_default(), 0);
    });
}

#[test]
fn c22_programs_of_the_host_are_told_the_agents_address_where_there_is_one() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let record = json!({"version": 1, "name": "c1", "uuid": "u", "cid": 7, "monitor": null});
        fs::write("/run/kata/tests/c1/processes", record.to_string()).unwrap();
        assert_eq!(get("/agent-url").await, (200, "vsock://7:1024".into()));
    });
}

/// A container with a volume that a storage driver has assigned.
async fn runs_with_volume(shim: &Shim) -> PathBuf {
    let note = Path::new(NOTES).join(URL_SAFE.encode(VOLUME));
    fs::create_dir_all(&note).unwrap();
    let text = json!({"volume-type": "block", "device": "/dev/sdx", "fstype": "ext4"}).to_string();
    fs::write(note.join("mountInfo.json"), text).unwrap();
    let request = shim.request("c1");
    let file = shim.dir.path().join("c1/config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    spec["mounts"] =
        json!([{"destination": "/data", "source": VOLUME, "type": "bind", "options": ["rbind"]}]);
    fs::write(&file, spec.to_string()).unwrap();
    shim.create_as(request).await.unwrap();
    shim.start("c1").await.unwrap();
    shim.published(2).await;
    note.join("c1")
}

#[test]
fn c22_d16_volumes_are_told_of_and_grow_with_their_disks() {
    on_fakes(async |shim| {
        let claim = runs_with_volume(shim).await;
        assert!(claim.exists(), "drivers are told whose it is");
        let stats = format!("/direct-volume/stats?path={}", VOLUME.replace('/', "%2F"));
        let (status, text) = get(&stats).await;
        let expected = json!({
            "usage": [{"available": 1, "total": 3, "used": 2, "unit": 1}],
            "volume_condition": {"abnormal": false, "message": ""},
        });
        assert_eq!((status, serde_json::from_str::<Value>(&text).unwrap()), (200, expected));
        assert_eq!(get("/direct-volume/stats?path=%2Fdev%2Fsdx").await, (200, text), "by its device");
        let resize = |size: u64| json!({"VolumePath": VOLUME, "Size": size}).to_string();
        assert_eq!(ask("POST", "/direct-volume/resize", &resize(8 << 20)).await, (200, String::new()));
        shim.guest.is_asked("ResizeVolume 8388608").await;
        let (status, words) = ask("POST", "/direct-volume/resize", &resize(9 << 20)).await;
        assert!(status == 409 && words.contains("8388608"), "a disk that has not grown: {words}");
        shim.guest.refuses("ResizeVolume", Code::FAILED_PRECONDITION, "larger already");
        assert_eq!(ask("POST", "/direct-volume/resize", &resize(1 << 20)).await.0, 409);

        shim.kill("c1", 9).await.unwrap();
        shim.wait("c1").await.unwrap();
        shim.published(1).await;
        shim.delete("c1").await.unwrap();
        shim.published(1).await;
        settled().await;
        assert!(!claim.exists() && claim.parent().unwrap().join("mountInfo.json").exists());
    });
}

#[test]
fn c22_of_a_machine_that_is_gone_nothing_is_told_and_at_once() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let mut early = Vec::new();
        for _ in 0..2 {
            early.push(UnixStream::connect(DOOR).await.unwrap());
        }
        settled().await;
        let late = shim.guest.delays("GetIPTables");
        let waits = tokio::spawn(get("/iptables"));
        shim.guest.is_asked("GetIPTables").await;
        shim.machine.dies().await;
        assert_eq!(waits.await.unwrap().0, 503);
        for (mut stream, target) in early.into_iter().zip(["/metrics", "/ip6tables"]) {
            stream
                .write_all(format!("GET {target} HTTP/1.1\r\nHost: shim\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let (status, words) = heard(stream).await;
            assert!(status == 503 && words.contains("gone"), "{target}: {words}");
        }
        drop(late);
        shim.published(1).await;
        shim.service.stop().await;
        assert!(!Path::new(DOOR).exists());
    });
}

#[test]
fn c22_so_many_are_answered_at_once_and_the_others_wait() {
    on_fakes(async |shim| {
        shim.runs("c1").await;
        let mut idle = Vec::new();
        for _ in 0..8 {
            idle.push(UnixStream::connect(DOOR).await.unwrap());
        }
        settled().await;
        let mut ninth = tokio::spawn(get("/iptables"));
        assert!(timeout(Duration::from_millis(200), &mut ninth).await.is_err(), "eight are there already");
        idle.pop();
        assert_eq!(ninth.await.unwrap().0, 200);
        idle.push(UnixStream::connect(DOOR).await.unwrap());
        settled().await;
        let patient = tokio::spawn(get("/iptables"));
        settled().await;
        // Nobody keeps a place for long without saying anything.
        later(Duration::from_secs(6)).await;
        assert_eq!(patient.await.unwrap().0, 200);
    });
}
