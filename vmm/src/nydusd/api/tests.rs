use super::*;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use tempfile::TempDir;

const RUNNING: &str = "HTTP/1.1 200 \r\nContent-Length: 19\r\n\r\n{\"state\":\"RUNNING\"}";

/// What was asked, on which connections: they are open as long as this value is there.
type Served = Vec<(String, UnixStream)>;

/// A daemon that reads a request and answers the next of `answers`, on a connection for each.
fn daemon(answers: &'static [&'static str]) -> (Api, JoinHandle<Served>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let serving = std::thread::spawn(move || {
        let served = answers.iter().map(|answer| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            // Whoever has read enough of it, or waited long enough for it, is gone.
            let _ = stream.write_all(answer.as_bytes());
            (String::from_utf8(request[..length].to_vec()).unwrap(), stream)
        });
        served.collect()
    });
    (Api { socket, patience: Duration::from_secs(5) }, serving, dir)
}

#[tokio::test]
async fn a_directory_is_mounted_by_the_request_that_nydus_documents() {
    let (api, serving, _dir) = daemon(&["HTTP/1.1 204 \r\nServer: Nydus API\r\n\r\n"]);
    api.mount_passthrough("/containers", Path::new("/run/a \"b")).await.unwrap();
    let (request, _) = serving.join().unwrap().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /api/v1/mount?mountpoint=/containers HTTP/1.1\r\n"), "{head}");
    assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{head}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body, json!({"fs_type": "passthrough_fs", "source": "/run/a \"b", "config": ""}));
}

#[tokio::test]
async fn a_daemon_that_is_coming_up_is_waited_for() {
    let starting = "HTTP/1.1 200 \r\nContent-Length: 16\r\n\r\n{\"state\":\"INIT\"}";
    let (api, serving, _dir) = daemon(Box::leak(Box::new([starting, starting, RUNNING])));
    api.running().await.unwrap();
    assert_eq!(serving.join().unwrap().len(), 3);
}

#[tokio::test]
async fn a_daemon_that_says_no_is_quoted_on_one_line() {
    let refusal =
        "HTTP/1.1 500 \r\nContent-Length: 38\r\n\r\n{\"code\":\"X\",\"message\":\"Mount(\\nNot it)\"}";
    let (api, _serving, _dir) =
        daemon(Box::leak(Box::new([refusal, "HTTP/1.1 400 \r\nContent-Length: 3\r\n\r\nno!"])));
    let text = api.mount_passthrough("/containers", Path::new("/x")).await.unwrap_err().to_string();
    assert!(text.contains("refused POST /api/v1/mount?mountpoint=/containers with status 500"), "{text}");
    let text = api.mount_passthrough("/containers", Path::new("/x")).await.unwrap_err().to_string();
    assert!(text.ends_with("with status 400: no!"), "{text}");
}

#[tokio::test]
async fn garbage_is_an_error_at_once() {
    let flood: &str = Box::leak(format!("HTTP/1.1 200 {}", "x".repeat(1 << 17)).into_boxed_str());
    for garbage in ["220 smtp ready\r\n", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n[]", flood] {
        let (api, _serving, _dir) = daemon(Box::leak(Box::new([garbage])));
        let error = api.running().await.unwrap_err();
        assert!(matches!(error, NydusdError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn who_does_not_listen_answer_or_serve_is_given_up_at_the_deadline() {
    let (hanging, _serving, _dir) = daemon(&["HTTP/1.1 200 \r\n"]);
    let stuck = "HTTP/1.1 200 \r\nContent-Length: 17\r\n\r\n{\"state\":\"READY\"}";
    let (never, _serving, _dir) = daemon(Box::leak(Box::new([stuck; 1000])));
    let nobody = Api::at("/nowhere/api.sock".into());
    for (api, last) in
        [(hanging, "it does not answer"), (never, "its state is \"READY\""), (nobody, "it does not answer")]
    {
        let api = Api { patience: Duration::from_millis(200), ..api };
        let text = api.running().await.unwrap_err().to_string();
        assert!(text.contains("GET /api/v1/daemon") && text.ends_with(last), "{text}");
    }
}
