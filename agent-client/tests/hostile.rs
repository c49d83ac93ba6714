//! An agent that lies, stalls or breaks off: every bounded call fails by its deadline, nothing panics, and
//! what can go on goes on (S-A1).

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{future::Future, time::Duration};

use agent_client::{AgentClient, Error};
use agent_protocol::{empty::Empty, health::health_check_response::ServingStatus};
use support::{Peer, answer, frame, header, health, pair};
use tokio::time::{Instant, sleep, timeout};
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE};

const ROOM: usize = 1 << 16;
const MINUTE: Duration = Duration::from_secs(60);

/// Runs `StartContainer` against a script that is given its stream id, and keeps the peer until the end.
async fn start_against<F: Future<Output = Peer>>(
    script: impl FnOnce(Peer, u32) -> F,
) -> (Result<(), Error>, Duration, AgentClient, Peer) {
    let (client, mut peer) = pair(ROOM);
    let begun = Instant::now();
    let play = async {
        let asked = peer.asked().await.unwrap();
        script(peer, asked.stream_id).await
    };
    let (outcome, peer) = tokio::join!(client.start_container("c"), play);
    (outcome, begun.elapsed(), client, peer)
}

/// The connection still serves.
async fn assert_usable(client: &AgentClient, peer: &mut Peer) {
    let (outcome, ()) = tokio::join!(client.check(), peer.healthy());
    outcome.unwrap();
}

fn assert_late(outcome: &Result<(), Error>, elapsed: Duration) {
    assert!(matches!(outcome, Err(Error::Timeout { after: MINUTE, .. })), "{outcome:?}");
    assert!(elapsed < MINUTE + Duration::from_secs(1), "{elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_never_answers_costs_one_deadline() {
    let (outcome, elapsed, client, mut peer) = start_against(|peer, _| async { peer }).await;
    assert_late(&outcome, elapsed);
    assert_usable(&client, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_after_the_deadline_is_dropped() {
    let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
        sleep(2 * MINUTE).await;
        peer.bytes(&answer(stream, &Empty::default())).await;
        peer
    })
    .await;
    assert!(matches!(outcome, Err(Error::Timeout { .. })));
    assert_usable(&client, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn a_length_of_four_gigabytes_stalls_nobody_beyond_the_deadline() {
    let (outcome, elapsed, client, _peer) = start_against(|mut peer, stream| async move {
        peer.bytes(&header(u32::MAX, stream, MESSAGE_TYPE_RESPONSE)).await;
        peer
    })
    .await;
    assert_late(&outcome, elapsed);
    // The agent's next words count as that frame's body, so other calls end by their deadlines too.
    assert!(matches!(client.check().await, Err(Error::Timeout { call: "Check", .. })));
}

#[tokio::test(start_paused = true)]
async fn half_a_header_stalls_nobody_beyond_the_deadline() {
    let (outcome, elapsed, ..) = start_against(|mut peer, stream| async move {
        peer.bytes(&header(3, stream, MESSAGE_TYPE_RESPONSE)[..5]).await;
        peer
    })
    .await;
    assert_late(&outcome, elapsed);
}

#[tokio::test(start_paused = true)]
async fn a_byte_per_second_does_not_move_the_deadline() {
    let (outcome, elapsed, ..) = start_against(|mut peer, stream| async move {
        let trickle = async {
            for byte in frame(stream, MESSAGE_TYPE_RESPONSE, &[0; 1000]) {
                peer.bytes(&[byte]).await;
                sleep(Duration::from_secs(1)).await;
            }
        };
        timeout(Duration::from_secs(59), trickle).await.unwrap_err();
        peer
    })
    .await;
    assert_late(&outcome, elapsed);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_inside_a_frame_ends_its_calls_at_once() {
    let (client, mut peer) = pair(ROOM);
    let play = async move {
        let asked = peer.asked().await.unwrap();
        peer.bytes(&header(100, asked.stream_id, MESSAGE_TYPE_RESPONSE)).await;
        peer.bytes(&[0; 50]).await;
    };
    let begun = Instant::now();
    let (start, wait, ()) = tokio::join!(client.start_container("c"), client.wait_process("c", ""), play);
    assert!(matches!(start, Err(Error::Closed { call: "StartContainer" })), "{start:?}");
    assert!(matches!(wait, Err(Error::Closed { call: "WaitProcess" })), "{wait:?}");
    client.closed().await;
    assert!(matches!(client.check().await, Err(Error::Closed { call: "Check" })));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn frames_of_a_wrong_type_fail_their_call_only() {
    for kind in [0, MESSAGE_TYPE_REQUEST, 0x7f, 0xff] {
        let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
            peer.frame(stream, kind, b"").await;
            peer
        })
        .await;
        assert!(matches!(outcome, Err(Error::Protocol { .. })), "type {kind}: {outcome:?}");
        assert_usable(&client, &mut peer).await;
    }
}

#[tokio::test(start_paused = true)]
async fn answers_nobody_asked_for_are_dropped() {
    let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
        for unknown in [0, stream + 2, u32::MAX] {
            peer.bytes(&answer(unknown, &Empty::default())).await;
        }
        peer.bytes(&answer(stream, &Empty::default())).await;
        peer.bytes(&answer(stream, &Empty::default())).await;
        peer
    })
    .await;
    outcome.unwrap();
    assert_usable(&client, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_data_frames_are_dropped() {
    let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
        for _ in 0..100_000 {
            peer.frame(stream + 2, MESSAGE_TYPE_DATA, b"data").await;
        }
        peer.bytes(&answer(stream, &Empty::default())).await;
        peer
    })
    .await;
    outcome.unwrap();
    assert_usable(&client, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn data_frames_on_a_calls_own_stream_fail_it_only() {
    let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
        for _ in 0..100_000 {
            peer.frame(stream, MESSAGE_TYPE_DATA, b"data").await;
        }
        peer
    })
    .await;
    assert!(matches!(outcome, Err(Error::Protocol { .. })), "{outcome:?}");
    assert_usable(&client, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn groups_nested_ten_thousand_deep_do_not_overflow_the_stack() {
    // 0x13 opens a group in field 2 of the answer's envelope, 0x0b one in field 1 of an empty message.
    let inner = ttrpc::proto::Response { payload: vec![0x0b; 10_000], ..Default::default() };
    for body in [vec![0x13; 10_000], protobuf::Message::write_to_bytes(&inner).unwrap()] {
        let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
            peer.frame(stream, MESSAGE_TYPE_RESPONSE, &body).await;
            peer
        })
        .await;
        assert!(matches!(outcome, Err(Error::Protocol { .. })), "{outcome:?}");
        assert_usable(&client, &mut peer).await;
    }
}

/// ttrpc takes a code it does not know for OK. The guest could have said OK as well, so that is no more than
/// a lie, and a lie about success is found out by what comes after.
#[tokio::test(start_paused = true)]
async fn a_status_outside_the_protocol_passes_for_success() {
    let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
        // status { code: 4711, message: ESC "[2J" }
        let status = [0x08, 0xe7, 0x24, 0x12, 4, 0x1b, b'[', b'2', b'J'];
        let body = [&[0x0a, status.len() as u8], status.as_slice()].concat();
        peer.frame(stream, MESSAGE_TYPE_RESPONSE, &body).await;
        peer
    })
    .await;
    outcome.unwrap();
    assert_usable(&client, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_over_four_megabytes_fails_its_call_only() {
    let (outcome, _, client, mut peer) = start_against(|mut peer, stream| async move {
        peer.frame(stream, MESSAGE_TYPE_RESPONSE, &vec![0; MESSAGE_LENGTH_MAX + 1]).await;
        peer
    })
    .await;
    assert!(outcome.is_err());
    assert_usable(&client, &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn random_bytes_fail_calls_and_nothing_else() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..50 {
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(4096)
        .collect();
        let (outcome, elapsed, ..) = start_against(|mut peer, _| async move {
            peer.bytes(&noise).await;
            peer
        })
        .await;
        assert!(outcome.is_err());
        assert!(elapsed <= MINUTE + Duration::from_secs(1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_reading_costs_each_call_its_deadline() {
    let (client, _peer) = pair(64);
    let begun = Instant::now();
    let blocked = client.write_stdin("c", "", &[0; 1 << 14]);
    let (blocked, start) = tokio::join!(timeout(2 * MINUTE, blocked), client.start_container("c"));
    blocked.unwrap_err();
    assert!(matches!(start, Err(Error::Timeout { call: "StartContainer", after: MINUTE })), "{start:?}");
    assert_eq!(begun.elapsed(), 2 * MINUTE);
}

#[tokio::test(start_paused = true)]
async fn a_request_the_agent_does_not_take_in_time_closes_the_connection() {
    let (client, _peer) = pair(8);
    let start = client.start_container("a container's id longer than the room between the two").await;
    assert!(matches!(start, Err(Error::Timeout { .. })), "{start:?}");
    timeout(Duration::from_secs(1), client.closed()).await.unwrap();
    assert!(matches!(client.check().await, Err(Error::Closed { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_call_given_up_half_written_does_not_cost_the_others_the_connection() {
    let (client, mut peer) = pair(64);
    let given_up = timeout(Duration::from_secs(1), client.write_stdin("c", "", &[7; 1 << 14]));
    given_up.await.unwrap_err();
    let play = async {
        assert_eq!(peer.asked().await.unwrap().method, "WriteStdin");
        peer.healthy().await;
    };
    tokio::join!(client.check(), play).0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_says_it_does_not_serve_is_not_healthy() {
    for status in [ServingStatus::UNKNOWN, ServingStatus::NOT_SERVING] {
        let (client, mut peer) = pair(ROOM);
        let play = async {
            let asked = peer.asked().await.unwrap();
            peer.answer(&asked, &health(status)).await;
        };
        let (outcome, ()) = tokio::join!(client.check(), play);
        assert!(matches!(outcome, Err(Error::Protocol { call: "Check", .. })), "{outcome:?}");
    }
}
