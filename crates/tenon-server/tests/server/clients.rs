//! Clients that take what is not theirs: bounded, each in its way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tenon_server::{Limits, Options};

use crate::served::{Served, fixtures};

fn with(limits: Limits) -> Served {
    Served::with(Options { allow_paths: vec![fixtures()], limits, ..Options::default() })
}

/// Reads until the server closes; how long that took.
fn until_closed(stream: &mut TcpStream) -> (Vec<u8>, Duration) {
    let clock = Instant::now();
    let mut bytes = vec![];
    // An abort is an end too.
    let _ = stream.read_to_end(&mut bytes);
    (bytes, clock.elapsed())
}

#[test]
fn a_head_that_trickles_in_is_cut_off_and_others_are_served_meanwhile() {
    let served = with(Limits { header_time: Duration::from_millis(700), ..Limits::default() });
    let slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: ").unwrap();
            stream
        })
        .collect();
    let clock = Instant::now();
    assert_eq!(served.get("jobs").status, 200);
    assert!(clock.elapsed() < Duration::from_secs(5));
    let trickle = std::thread::spawn(move || {
        for mut stream in slow {
            // A byte now and then does not count as a head.
            let _ = stream.write_all(b"a");
            let (_, time) = until_closed(&mut stream);
            assert!(time < Duration::from_secs(10));
        }
    });
    trickle.join().unwrap();
    // Connections that idle between requests too.
    let mut idle = served.connect();
    idle.write_all(format!("GET /api/v1/health HTTP/1.1\r\nHost: {}\r\n\r\n", served.address).as_bytes())
        .unwrap();
    let (bytes, time) = until_closed(&mut idle);
    assert!(bytes.starts_with(b"HTTP/1.1 200") && time < Duration::from_secs(10), "{time:?}");
}

#[test]
fn a_body_that_trickles_in_is_cut_off() {
    let served = with(Limits { request_time: Duration::from_millis(500), ..Limits::default() });
    let head = "POST /api/v1/savings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let mut stream = served.connect();
    stream.write_all(head.as_bytes()).unwrap();
    let (bytes, time) = until_closed(&mut stream);
    assert!(bytes.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&bytes));
    assert!(time < Duration::from_secs(10));
}

#[test]
fn bodies_beyond_the_bound_are_refused() {
    let served = with(Limits { body_bytes: 1000, ..Limits::default() });
    let large = format!("{{\"customized\":\"{}\"}}", "x".repeat(2000));
    served.ask("POST", "/api/v1/savings", &[], Some(&large)).is_problem(413, "body_too_large");
    served
        .ask("POST", "/api/v1/savings", &[("Idempotency-Key", "k")], Some(&large))
        .is_problem(413, "body_too_large");
    // One that only says so is not read at all; one that does not say is read as far as the bound.
    let declared = b"POST /api/v1/savings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n{}";
    assert_eq!(served.raw(declared).status, 413);
    let mut chunked =
        b"POST /api/v1/savings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            .to_vec();
    for _ in 0..100 {
        chunked.extend(b"64\r\n");
        chunked.extend([b'x'; 100]);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    assert_eq!(served.raw(&chunked).status, 413);
    let long_head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-A: {}\r\n\r\n", "x".repeat(200_000));
    assert!([0, 431].contains(&served.raw(long_head.as_bytes()).status));
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(200_000));
    assert!([0, 414, 431].contains(&served.raw(long_path.as_bytes()).status));
}

#[test]
fn ten_thousand_idle_event_streams_are_as_many_as_the_server_keeps() {
    let kept = 100;
    let served = with(Limits { event_streams: kept, ..Limits::default() });
    let ask = format!("GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", served.address);
    let (mut open, mut refused) = (vec![], 0);
    let before = resident();
    for _ in 0..10_000 {
        let mut stream = served.connect();
        stream.write_all(ask.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        match &head[9..] {
            b"200" => open.push(stream),
            b"503" => refused += 1,
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    assert_eq!((open.len(), refused), (kept, 10_000 - kept));
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more for idle streams");
    // The others are served as before, and a stream that ends makes room for another.
    assert_eq!(served.get("jobs").status, 200);
    served.get("events").is_problem(503, "busy");
    drop(open);
    let clock = Instant::now();
    loop {
        let mut stream = served.connect();
        stream.write_all(ask.as_bytes()).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        if &head[9..] == b"200" {
            break;
        }
        assert!(clock.elapsed() < Duration::from_secs(20), "streams that ended were not noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn event_streams_end_by_themselves() {
    let served = with(Limits { event_stream_time: Duration::from_millis(300), ..Limits::default() });
    let clock = Instant::now();
    let answer = served.get("events");
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("event: hello"), "{}", answer.text());
    assert!(clock.elapsed() < Duration::from_secs(10));
}

#[test]
fn who_takes_nothing_of_what_is_sent_is_cut_off() {
    let served = with(Limits { stall_time: Duration::from_millis(500), ..Limits::default() });
    let model = served.save()["model"].as_str().unwrap().to_string();
    let files = served.get(&format!("complete-models/{model}/files")).json();
    let file = files["items"].as_array().unwrap().iter().max_by_key(|file| file["bytes"].as_u64()).unwrap();
    // Requests for much more than fits into the buffers between the two.
    let path = format!("/api/v1/complete-models/{model}/files/{}", file["name"].as_str().unwrap());
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", served.address).repeat(400);
    let mut stream = served.connect();
    stream.write_all(request.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    // The model is not held by somebody who does not read.
    let clock = Instant::now();
    while served.ask("DELETE", &format!("/api/v1/complete-models/{model}"), &[], None).status != 204 {
        assert!(clock.elapsed() < Duration::from_secs(10), "the stalled download holds the model");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn connections_beyond_the_bound_wait_for_their_turn() {
    let served = with(Limits { connections: 4, header_time: Duration::from_secs(1), ..Limits::default() });
    let idle: Vec<_> = (0..8).map(|_| served.connect()).collect();
    let clock = Instant::now();
    assert_eq!(served.get("health").status, 200, "those that say nothing are cut off and make room");
    assert!(clock.elapsed() < Duration::from_secs(15));
    drop(idle);
}

/// Bytes of memory that this process has resident.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024
}
