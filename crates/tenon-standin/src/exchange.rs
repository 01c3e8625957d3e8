//! One connection: requests read, rules looked up, answers written.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::{Act, Seen, Shared, ollama};

/// A request of which the head was read.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    length: u64,
    chunked: bool,
    authorization: Option<String>,
}

/// An answer. A stream goes out in chunks, a piece each.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) pieces: Vec<Vec<u8>>,
    pub(crate) is_stream: bool,
}

impl Answer {
    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Self {
        let pieces = vec![value.to_string().into_bytes()];
        Self { status, kind: "application/json; charset=utf-8", pieces, is_stream: false }
    }

    pub(crate) fn error(status: u16, sentence: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": sentence }))
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, kind: "text/plain", pieces: vec![], is_stream: false }
    }
}

/// Serves a connection until it ends.
pub(crate) fn serve(stream: TcpStream, shared: &Shared) {
    let Ok(reading) = stream.try_clone() else { return };
    let (mut reader, mut stream) = (BufReader::new(reading), stream);
    while let Ok(Some(request)) = head(&mut reader) {
        match answer(&mut reader, &mut stream, request, shared) {
            Ok(true) => {}
            // Whatever went wrong, the other side sees a connection that ended.
            Ok(false) | Err(_) => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn head(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.take(16384).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(None) };
    let mut request =
        Request { method: method.into(), path: path.into(), length: 0, chunked: false, authorization: None };
    loop {
        let mut line = String::new();
        reader.take(16384).read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => request.length = value.parse().map_err(io::Error::other)?,
            "transfer-encoding" => request.chunked = value.eq_ignore_ascii_case("chunked"),
            "authorization" => request.authorization = Some(value.into()),
            _ => {}
        }
    }
    Ok(Some(request))
}

/// Reads a body, at most so many bytes of it; whether that was all.
fn body(reader: &mut impl BufRead, request: &Request, most: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut body = vec![];
    if !request.chunked {
        reader.take(request.length.min(most)).read_to_end(&mut body)?;
        return Ok((body, request.length <= most));
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        reader.take(length).read_to_end(&mut body)?;
        reader.read_line(&mut String::new())?;
        if length == 0 {
            return Ok((body, true));
        }
        if body.len() as u64 > most {
            return Ok((body, false));
        }
    }
}

/// Whether the connection goes on.
fn answer(
    reader: &mut impl BufRead,
    stream: &mut TcpStream,
    request: Request,
    shared: &Shared,
) -> io::Result<bool> {
    let line = format!("{} {}", request.method, request.path);
    let act = {
        let mut state = shared.state();
        let fits = |rule: &&mut crate::Rule| line.starts_with(&rule.on) && rule.times != Some(0);
        match state.rules.iter_mut().find(fits) {
            Some(rule) if rule.after > 0 => {
                rule.after -= 1;
                None
            }
            Some(rule) => {
                rule.times = rule.times.map(|times| times - 1);
                Some(rule.act.clone())
            }
            None => None,
        }
    };
    let most = match act {
        Some(Act::StatusAtOnce { .. }) => 0,
        Some(Act::HangReading(bytes) | Act::CutRequest(bytes)) => bytes,
        _ => u64::MAX,
    };
    let (body, _) = body(reader, &request, most)?;
    let refused = {
        let mut state = shared.state();
        let (bytes, authorization) = (body.len() as u64, request.authorization.clone());
        state.seen.push(Seen { line, bytes, authorization });
        state
            .key
            .as_ref()
            .is_some_and(|key| request.authorization.as_deref() != Some(format!("Bearer {key}").as_str()))
    };
    let do_it = || {
        if refused {
            return Answer::error(401, "unauthorized");
        }
        ollama::answer(&request, &body, &mut shared.state())
    };
    match act {
        None => write(stream, &request, &do_it(), &[], u64::MAX, Duration::ZERO),
        Some(Act::Status { code, headers, body }) => {
            let kind = if body.starts_with('{') { "application/json" } else { "text/html" };
            let answer = Answer { status: code, kind, pieces: vec![body.into_bytes()], is_stream: false };
            write(stream, &request, &answer, &headers, u64::MAX, Duration::ZERO)
        }
        Some(Act::StatusAtOnce { code, body }) => {
            let answer = Answer::error(code, &body);
            write(stream, &request, &answer, &[], u64::MAX, Duration::ZERO)?;
            // What the other side still sends is taken, so that it sees the answer, as proxies do.
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            io::copy(&mut reader.take(1 << 30), &mut io::sink())?;
            Ok(false)
        }
        Some(Act::Hang | Act::HangReading(_)) => {
            // Until the other side gives up.
            while !shared.stopped.load(std::sync::atomic::Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(false)
        }
        Some(Act::CutRequest(_)) => Ok(false),
        Some(Act::CutAnswer(bytes)) => {
            write(stream, &request, &do_it(), &[], bytes, Duration::ZERO)?;
            Ok(false)
        }
        Some(Act::Slow(millis)) => {
            let answer = split(do_it(), 1);
            write(stream, &request, &answer, &[], u64::MAX, Duration::from_millis(millis))
        }
        Some(Act::Split(bytes)) => {
            write(stream, &request, &split(do_it(), bytes), &[], u64::MAX, Duration::from_millis(1))
        }
        Some(Act::Say(pieces)) => {
            let answer = Answer { status: 200, kind: "application/x-ndjson", pieces, is_stream: true };
            write(stream, &request, &answer, &[], u64::MAX, Duration::from_millis(2))
        }
        Some(Act::Add(pieces)) => {
            let mut answer = do_it();
            answer.pieces.extend(pieces);
            write(stream, &request, &answer, &[], u64::MAX, Duration::ZERO)
        }
        Some(Act::Swallow) => {
            let mut answer = do_it();
            answer.pieces.clear();
            write(stream, &request, &answer, &[], u64::MAX, Duration::ZERO)
        }
    }
}

fn split(answer: Answer, bytes: usize) -> Answer {
    let all = answer.pieces.concat();
    Answer { pieces: all.chunks(bytes.max(1)).map(<[u8]>::to_vec).collect(), ..answer }
}

/// Writes an answer, at most so many bytes of its body. Whether all of it.
fn write(
    stream: &mut TcpStream,
    request: &Request,
    answer: &Answer,
    headers: &[(String, String)],
    most: u64,
    pause: Duration,
) -> io::Result<bool> {
    let length: usize = answer.pieces.iter().map(Vec::len).sum();
    let mut head = format!("HTTP/1.1 {} Said\r\ncontent-type: {}\r\n", answer.status, answer.kind);
    if answer.is_stream {
        head.push_str("transfer-encoding: chunked\r\n");
    } else {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.set_nodelay(true)?;
    stream.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(true);
    }
    let mut left = most;
    for piece in &answer.pieces {
        let sent = &piece[..(piece.len() as u64).min(left) as usize];
        if answer.is_stream && !sent.is_empty() {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
        }
        stream.write_all(sent)?;
        left -= sent.len() as u64;
        if sent.len() < piece.len() || left == 0 {
            return Ok(false);
        }
        if answer.is_stream && !sent.is_empty() {
            stream.write_all(b"\r\n")?;
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    if answer.is_stream {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(true)
}
