//! What each call sends, what it believes of the answer, and how long it waits.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{future::Future, time::Duration};

use agent_client::{AgentClient, Code, Copied, Error, STREAM_CHUNK, StreamPorts, Timeouts};
use agent_protocol::{
    agent::{
        self, OOMEvent, ReadStreamRequest, ReadStreamResponse, WaitProcessResponse, WriteStreamRequest,
        WriteStreamResponse,
    },
    empty::Empty,
    oci, types,
};
use protobuf::Message;
use support::{Asked, pair};
use tokio::{
    io::{AsyncReadExt, duplex},
    time::{Instant, timeout},
};

const ROOM: usize = 1 << 17;

/// Runs one call and answers it with `message`.
async fn answered<T>(
    call: impl AsyncFnOnce(&AgentClient) -> Result<T, Error>,
    message: &impl Message,
) -> (Result<T, Error>, Asked) {
    let (client, mut peer) = pair(ROOM);
    let play = async {
        let asked = peer.asked().await.unwrap();
        peer.answer(&asked, message).await;
        asked
    };
    tokio::join!(call(&client), play)
}

/// Runs one call and refuses it.
async fn refused<T>(
    call: impl AsyncFnOnce(&AgentClient) -> Result<T, Error>,
    code: Code,
    message: &str,
) -> Result<T, Error> {
    let (client, mut peer) = pair(ROOM);
    let play = async {
        let asked = peer.asked().await.unwrap();
        peer.refuse(&asked, code, message).await;
    };
    tokio::join!(call(&client), play).0
}

fn output(bytes: &[u8]) -> ReadStreamResponse {
    ReadStreamResponse { data: bytes.to_vec(), ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn output_no_longer_than_asked_is_passed_on() {
    let (read, asked) = answered(async |c| c.read_stdout("c", "e", 4).await, &output(b"four")).await;
    assert_eq!(read.unwrap(), b"four");
    let request: ReadStreamRequest = asked.message();
    assert_eq!((asked.method.as_str(), request.len), ("ReadStdout", 4));
    assert_eq!((request.container_id.as_str(), request.exec_id.as_str()), ("c", "e"));
}

/// S-A2: both runtimes in the field crash here.
#[tokio::test(start_paused = true)]
async fn output_longer_than_asked_breaks_the_protocol() {
    for (max, answered_with) in [(4, 5), (0, 2), (usize::MAX, STREAM_CHUNK + 1)] {
        let reply = output(&vec![0; answered_with]);
        let (out, _) = answered(async |c| c.read_stdout("c", "", max).await, &reply).await;
        assert!(matches!(out, Err(Error::Protocol { call: "ReadStdout", .. })), "{out:?}");
        let (err, _) = answered(async |c| c.read_stderr("c", "", max).await, &reply).await;
        assert!(matches!(err, Err(Error::Protocol { call: "ReadStderr", .. })), "{err:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_read_asks_for_more_than_agents_in_the_field_give() {
    let (_, asked) = answered(async |c| c.read_stdout("c", "", 1 << 20).await, &output(b"")).await;
    assert_eq!(asked.message::<ReadStreamRequest>().len as usize, STREAM_CHUNK);
}

#[tokio::test(start_paused = true)]
async fn both_ways_of_saying_end_of_stream_are_an_empty_answer() {
    let (own, _) = answered(async |c| c.read_stderr("c", "", 9).await, &output(b"")).await;
    assert_eq!(own.unwrap(), b"");
    for (code, text) in [(Code::INTERNAL, "read meet eof"), (Code::UNKNOWN, "EOF")] {
        assert_eq!(refused(async |c| c.read_stdout("c", "", 9).await, code, text).await.unwrap(), b"");
    }
    let error = refused(async |c| c.read_stdout("c", "", 9).await, Code::INTERNAL, "no such file").await;
    assert!(matches!(error, Err(Error::Guest { code: Code::INTERNAL, .. })), "{error:?}");
    let elsewhere = refused(async |c| c.start_container("c").await, Code::INTERNAL, "eof").await;
    elsewhere.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn input_is_taken_as_the_agent_says_within_reason() {
    let taken = |len| WriteStreamResponse { len, ..Default::default() };
    let (some, asked) = answered(async |c| c.write_stdin("c", "e", b"input").await, &taken(3)).await;
    assert_eq!(some.unwrap(), 3);
    assert_eq!(asked.message::<WriteStreamRequest>().data, b"input");
    for claimed in [0, 6, u32::MAX] {
        let (bad, _) = answered(async |c| c.write_stdin("c", "e", b"input").await, &taken(claimed)).await;
        assert!(matches!(bad, Err(Error::Protocol { call: "WriteStdin", .. })), "{claimed}: {bad:?}");
    }
    let much = vec![1; 3 * STREAM_CHUNK];
    let full = taken(STREAM_CHUNK as u32);
    let (one_chunk, _) = answered(async |c| c.write_stdin("c", "", &much).await, &full).await;
    assert_eq!(one_chunk.unwrap(), STREAM_CHUNK);
    let (client, _peer) = pair(ROOM);
    assert_eq!(client.write_stdin("c", "", b"").await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_exit_status_is_clamped_to_a_byte() {
    for (claimed, status) in [(0, 0), (7, 7), (137, 137), (255, 255), (256, 255), (-1, 0), (i32::MAX, 255)] {
        let reply = WaitProcessResponse { status: claimed, ..Default::default() };
        let (waited, _) = answered(async |c| c.wait_process("c", "").await, &reply).await;
        assert_eq!(waited.unwrap(), status, "{claimed}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_out_of_memory_event_names_only_containers_we_know() {
    let event = OOMEvent { container_id: "../../etc".to_owned(), ..Default::default() };
    let (claimed, _) = answered(async |c| c.oom_event().await, &event).await;
    assert_eq!(claimed.unwrap().known_as(["web", "db"]), None);
}

#[tokio::test(start_paused = true)]
async fn requests_carry_their_arguments() {
    let empty = Empty::default();
    let (done, asked) = answered(async |c| c.signal_process("c", "e", 15).await, &empty).await;
    done.unwrap();
    let request: agent::SignalProcessRequest = asked.message();
    assert_eq!((asked.method.as_str(), request.signal), ("SignalProcess", 15));

    let (done, asked) = answered(async |c| c.resize_tty("c", "e", 24, 80).await, &empty).await;
    done.unwrap();
    let request: agent::TtyWinResizeRequest = asked.message();
    assert_eq!((asked.method.as_str(), request.row, request.column), ("TtyWinResize", 24, 80));

    let interface = types::Interface { name: "eth0".into(), mtu: 1400, ..Default::default() };
    let (done, asked) =
        answered(async |c| c.update_interface(interface).await, &types::Interface::new()).await;
    done.unwrap();
    let request: agent::UpdateInterfaceRequest = asked.message();
    assert_eq!((asked.method.as_str(), request.interface.name.as_str()), ("UpdateInterface", "eth0"));

    let route = types::Route { device: "eth0".into(), ..Default::default() };
    let (done, asked) = answered(async |c| c.update_routes(vec![route]).await, &agent::Routes::new()).await;
    done.unwrap();
    let request: agent::UpdateRoutesRequest = asked.message();
    assert_eq!((asked.method.as_str(), request.routes.routes.len()), ("UpdateRoutes", 1));

    let neighbor = types::ARPNeighbor { device: "eth0".into(), ..Default::default() };
    let (done, asked) = answered(async |c| c.add_arp_neighbors(vec![neighbor]).await, &empty).await;
    done.unwrap();
    let request: agent::AddARPNeighborsRequest = asked.message();
    assert_eq!((asked.method.as_str(), request.neighbors.arp_neighbors.len()), ("AddARPNeighbors", 1));

    let process = oci::Process { args: vec!["ls".to_owned()], ..Default::default() };
    let ports = StreamPorts { stdin: 1, stdout: 2, stderr: 3 };
    let (done, asked) = answered(async |c| c.exec_process("c", "e", process, ports).await, &empty).await;
    done.unwrap();
    let request: agent::ExecProcessRequest = asked.message();
    assert_eq!((asked.method.as_str(), &request.process.args[..]), ("ExecProcess", &["ls".to_owned()][..]));
    assert_eq!((request.stdin_port, request.stdout_port, request.stderr_port), (1, 2, 3));

    let clock = Duration::from_micros(1_700_000_000_123_456);
    let (done, asked) = answered(async |c| c.set_date_time(clock).await, &empty).await;
    done.unwrap();
    let request: agent::SetGuestDateTimeRequest = asked.message();
    assert_eq!((request.sec, request.usec), (1_700_000_000, 123_456));
}

/// How long a call waits for an agent that never answers; `None` if longer than a week.
async fn patience<T>(
    timeouts: Timeouts,
    call: impl AsyncFnOnce(&AgentClient) -> Result<T, Error>,
) -> Option<u64> {
    let (host, _guest) = duplex(ROOM);
    let client = AgentClient::over(host, timeouts);
    let begun = Instant::now();
    let week = Duration::from_secs(7 * 24 * 3600);
    let outcome = timeout(week, call(&client)).await.ok()?;
    assert!(matches!(outcome, Err(Error::Timeout { .. })));
    Some(begun.elapsed().as_secs())
}

#[tokio::test(start_paused = true)]
async fn each_call_waits_as_long_as_configured() {
    let seconds = Duration::from_secs;
    let timeouts = Timeouts { check: seconds(1), create: seconds(2), call: seconds(3) };
    assert_eq!(patience(timeouts, async |c| c.check().await).await, Some(1));
    assert_eq!(patience(timeouts, async |c| c.create_sandbox(Default::default()).await).await, Some(2));
    assert_eq!(patience(timeouts, async |c| c.create_container(Default::default()).await).await, Some(2));
    assert_eq!(patience(timeouts, async |c| c.stats_container("c").await).await, Some(3));
    assert_eq!(patience(timeouts, async |c| c.close_stdin("c", "").await).await, Some(3));
    assert_eq!(patience(timeouts, async |c| c.remove_container("c", seconds(10)).await).await, Some(13));
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_the_guests_doings_have_no_deadline() {
    let timeouts = Timeouts::default();
    assert_eq!(patience(timeouts, async |c| c.wait_process("c", "").await).await, None);
    assert_eq!(patience(timeouts, async |c| c.read_stdout("c", "", 1).await).await, None);
    assert_eq!(patience(timeouts, async |c| c.read_stderr("c", "", 1).await).await, None);
    assert_eq!(patience(timeouts, async |c| c.write_stdin("c", "", b"x").await).await, None);
    assert_eq!(patience(timeouts, async |c| c.oom_event().await).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_connection_closes_with_the_last_client() {
    let (client, mut peer) = pair(ROOM);
    let closed = client.closed();
    let clone = client.clone();
    drop(client);
    tokio::join!(clone.check(), peer.healthy()).0.unwrap();
    drop(clone);
    closed.await;
    assert_eq!(peer.stream.read(&mut [0]).await.unwrap(), 0);
}

/// Futures of the calls must be fit for tasks of a runtime with threads.
#[tokio::test]
async fn calls_can_move_between_threads() {
    fn movable<T>(future: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
        future
    }
    let (client, mut peer) = pair(ROOM);
    let (checked, ()) = tokio::join!(movable(client.check()), peer.healthy());
    checked.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_file_is_copied_in_pieces_that_agents_take() {
    let data = vec![7; (2 << 20) + 5];
    let (client, mut peer) = pair(ROOM);
    let copied =
        Copied { path: "/run/kata-containers/f", mode: 0o100_640, owner: (1, u32::MAX), data: &data };
    let play = async {
        let mut pieces = Vec::new();
        for _ in 0..3 {
            let asked = peer.asked().await.unwrap();
            let piece: agent::CopyFileRequest = asked.message();
            assert_eq!((piece.file_size, piece.file_mode), (data.len() as i64, 0o100_640));
            assert_eq!((piece.uid, piece.gid), (1, -1));
            pieces.push((piece.offset, piece.data.len()));
            peer.answer(&asked, &Empty::new()).await;
        }
        pieces
    };
    let (done, pieces) = tokio::join!(client.copy(copied), play);
    done.unwrap();
    assert_eq!(pieces, [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 5)]);
}

#[tokio::test(start_paused = true)]
async fn an_empty_file_is_one_piece() {
    let (done, asked) =
        answered(async |client| client.copy_file("/run/kata-containers/f", 0o644, b"").await, &Empty::new())
            .await;
    done.unwrap();
    assert_eq!(asked.message::<agent::CopyFileRequest>().file_size, 0);
}
