//! HTTP as it is spoken with servers that are not trusted: bounded, watched, and told of in sentences.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::environment::{Secret, is_loopback};
use crate::{Environment, Error, Refusal, TlsFault, Watch, tls};

/// How often a wait looks up: whether to stop, and whether the server has become silent.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// Largest answer that is not a stream.
const MAX_ANSWER: usize = 16 << 20;
/// Longest line of a stream.
const MAX_LINE: usize = 1 << 20;
/// How much of what a server said is passed on.
const MAX_SAID: usize = 400;
/// The longest that a server may ask to wait.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// A client for one environment.
pub(crate) struct Http {
    client: Client,
    base: Url,
    secret: Option<Secret>,
    timeout: Duration,
    retries: u64,
    retry_delay: Duration,
}

/// Since when nothing has come from or gone to the server.
#[derive(Clone)]
pub(crate) struct Silence {
    begin: Instant,
    /// Milliseconds after `begin`.
    last: Arc<AtomicU64>,
}

impl Silence {
    pub(crate) fn begin() -> Self {
        Self { begin: Instant::now(), last: Arc::default() }
    }

    /// Something has.
    pub(crate) fn broken(&self) {
        self.last.store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// This side is silent for a while, which is not the server's fault.
    pub(crate) fn pause(&self, time: Duration) {
        self.last.store((self.begin.elapsed() + time).as_millis() as u64, Ordering::Relaxed);
    }

    fn lasts(&self) -> Duration {
        self.begin.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

impl Http {
    pub(crate) fn new(environment: &Environment) -> Result<Self, Error> {
        let base = environment.validate()?;
        let secret = environment.secret()?;
        let mut headers = HeaderMap::new();
        if let Some(secret) = &secret {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose()))
                .expect("a key is printable ASCII");
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut builder = Client::builder()
            .default_headers(headers)
            .user_agent(concat!("tenon/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(environment.timeout());
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        if let Some(path) = &environment.ca {
            for certificate in tls::certificates(path)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let client = builder.build().map_err(|e| Error::Tls {
            url: environment.url.clone(),
            fault: TlsFault::Other,
            reason: innermost(&e),
        })?;
        Ok(Self {
            client,
            base,
            secret,
            timeout: environment.timeout(),
            retries: environment.count("retries", 0..=100, 5)?,
            retry_delay: environment.seconds("retry-delay", Duration::from_millis(500))?,
        })
    }

    /// How long the server may be silent where it has nothing long to do.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The server's address.
    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// Waits for a future on this thread.
    pub(crate) fn run<T>(&self, future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(tenon_checkpoint::Error::io("start", "a network runtime"))?;
        let result = runtime.block_on(future);
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
        result
    }

    /// A request to a path below the server's address.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path()));
        self.client.request(method, url)
    }

    /// Waits for a future, but not when somebody asks to stop, nor longer than the server may be silent.
    pub(crate) async fn watched<T>(
        &self,
        doing: &str,
        limit: Duration,
        silence: &Silence,
        watch: &dyn Watch,
        future: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let mut future = pin!(future);
        let mut tick = tokio::time::interval(TICK.min(limit));
        loop {
            tokio::select! {
                biased;
                done = &mut future => return Ok(done),
                _ = tick.tick() => {
                    if watch.cancelled() {
                        return Err(Error::Cancelled);
                    }
                    if silence.lasts() > limit {
                        return Err(Error::Hung { doing: doing.into(), after: limit });
                    }
                }
            }
        }
    }

    /// Sends a request; an answer that is no success is an error.
    pub(crate) async fn send(
        &self,
        doing: &str,
        request: RequestBuilder,
        limit: Duration,
        silence: &Silence,
        watch: &dyn Watch,
    ) -> Result<Response, Error> {
        silence.broken();
        let sent = self.watched(doing, limit, silence, watch, request.send()).await?;
        let response = sent.map_err(|e| self.broken(doing, &e))?;
        silence.broken();
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status.is_redirection() {
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
            return Err(Error::Redirect { doing: doing.into(), to: self.quote(to) });
        }
        Err(self.refused(doing, response, watch).await?)
    }

    /// Sends a request that is answered at once with JSON.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        doing: &str,
        request: RequestBuilder,
        limit: Duration,
        watch: &dyn Watch,
    ) -> Result<T, Error> {
        let silence = Silence::begin();
        let response = self.send(doing, request, limit, &silence, watch).await?;
        let body = self.body(doing, response, limit, &silence, watch).await?;
        serde_json::from_slice(&body).map_err(|e| {
            let begins: String = String::from_utf8_lossy(&body).chars().take(60).collect();
            Error::Garbage { doing: doing.into(), reason: self.quote(&format!("{e}; it begins {begins:?}")) }
        })
    }

    /// The whole of an answer that is no stream.
    pub(crate) async fn body(
        &self,
        doing: &str,
        mut response: Response,
        limit: Duration,
        silence: &Silence,
        watch: &dyn Watch,
    ) -> Result<Vec<u8>, Error> {
        let mut body = vec![];
        while let Some(chunk) = self.chunk(doing, &mut response, limit, silence, watch).await? {
            if body.len() + chunk.len() > MAX_ANSWER {
                let reason = format!("it is longer than {MAX_ANSWER} bytes");
                return Err(Error::Garbage { doing: doing.into(), reason });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The next piece of an answer.
    pub(crate) async fn chunk(
        &self,
        doing: &str,
        response: &mut Response,
        limit: Duration,
        silence: &Silence,
        watch: &dyn Watch,
    ) -> Result<Option<bytes::Bytes>, Error> {
        let chunk = self.watched(doing, limit, silence, watch, response.chunk()).await?;
        silence.broken();
        chunk.map_err(|e| self.broken(doing, &e))
    }

    /// Tries again what failed in a way that may pass, later each time, and as late as the server asks.
    pub(crate) async fn retrying<T, F: Future<Output = Result<T, Error>>>(
        &self,
        watch: &dyn Watch,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error> {
        let mut delay = self.retry_delay;
        for left in (0..=self.retries).rev() {
            let error = match attempt().await {
                Err(error) if error.may_pass() && left > 0 => error,
                other => return other,
            };
            let asked = match &error {
                Error::Refused { retry_after, .. } => *retry_after,
                _ => None,
            };
            if asked.is_some_and(|asked| asked > MAX_WAIT) {
                return Err(error);
            }
            let wait = asked.unwrap_or(delay);
            watch.said(&format!("{error}; trying again in {:.1} s", wait.as_secs_f64()));
            let end = Instant::now() + wait;
            while let Some(rest) = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
                if watch.cancelled() {
                    return Err(Error::Cancelled);
                }
                tokio::time::sleep(rest.min(TICK)).await;
            }
            delay = (delay * 2).min(Duration::from_secs(60));
        }
        unreachable!("the last attempt returns")
    }

    async fn refused(&self, doing: &str, response: Response, watch: &dyn Watch) -> Result<Error, Error> {
        let status = response.status();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(retry_after_of);
        // What it says is worth a short wait only.
        let limit = self.timeout.min(Duration::from_secs(5));
        let body = match self.body(doing, response, limit, &Silence::begin(), watch).await {
            Err(error) if error.is_cancelled() => return Err(error),
            body => body.unwrap_or_default(),
        };
        let said = self.quote(&said_in(&body));
        let refusal = Refusal::of(status.as_u16(), &said);
        let said = match (said.is_empty(), status) {
            (true, StatusCode::UNAUTHORIZED) if self.secret.is_none() => "it wants a key".into(),
            (true, status) => status.canonical_reason().unwrap_or_default().to_lowercase(),
            (false, _) => said,
        };
        Ok(Error::Refused { doing: doing.into(), refusal, status: status.as_u16(), said, retry_after })
    }

    /// What a server said, fit to be passed on: in one line, not long, without the key.
    pub(crate) fn quote(&self, said: &str) -> String {
        let said = match &self.secret {
            Some(secret) => secret.scrub(said),
            None => said.to_string(),
        };
        let mut line: String =
            said.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_SAID + 1).collect();
        if line.chars().count() > MAX_SAID {
            line.pop();
            line.push('…');
        }
        line
    }

    /// Why there was no answer, or only half of one.
    fn broken(&self, doing: &str, error: &reqwest::Error) -> Error {
        let url = self.base.to_string();
        let reason = innermost(error);
        let tls = if self.base.scheme() == "https" {
            TlsFault::of(error)
        } else {
            // Of the answer's first line, when it is none.
            let is_odd = reason.contains("HTTP version") || reason.contains("invalid HTTP");
            is_odd.then(|| (TlsFault::NotPlain, "what answers there does not speak plain HTTP".to_string()))
        };
        if let Some((fault, reason)) = tls {
            return Error::Tls { url, fault, reason: self.quote(&reason) };
        }
        if error.is_connect() {
            let reason = if error.is_timeout() {
                format!("no connection within {:.0} s", self.timeout.as_secs_f64())
            } else {
                reason
            };
            return Error::Unreachable { url, reason };
        }
        Error::Cut { doing: doing.into(), reason: self.quote(&reason) }
    }
}

/// The text of an error's last cause: the ones before say only that something failed.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Seconds, or a date.
fn retry_after_of(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO))
}

/// The sentence in an answer that is an error, in the forms that servers have for it.
pub(crate) fn said_in(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        // Pages of proxies: what they say is in the title.
        let title = text.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
        return title.map_or_else(|| text.to_string(), |(title, _)| title.to_string());
    };
    let message = |value: &Value| value.as_str().map(str::to_string);
    message(&value["error"])
        .or_else(|| message(&value["error"]["message"]))
        .or_else(|| message(&value["message"]))
        .or_else(|| message(&value["detail"]))
        .unwrap_or_else(|| text.to_string())
}

/// The objects of a stream of JSON, put together from whatever pieces they arrive in.
///
/// A line may hold several objects; a piece may end anywhere, within a character too.
#[derive(Default)]
pub(crate) struct Objects {
    rest: Vec<u8>,
}

impl Objects {
    /// Takes a piece; gives the objects that are whole now.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<Value>, String> {
        self.rest.extend_from_slice(piece);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return if self.rest.len() > MAX_LINE {
                Err(format!("a line is longer than {MAX_LINE} bytes"))
            } else {
                Ok(vec![])
            };
        };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        lines.split(|byte| *byte == b'\n').try_fold(vec![], |mut objects, line| {
            objects.extend(parse(line)?);
            Ok(objects)
        })
    }

    /// The objects of a last line that no newline ends. One that is not whole is as if it never came.
    pub(crate) fn finish(self) -> Vec<Value> {
        parse(&self.rest).unwrap_or_default()
    }
}

fn parse(line: &[u8]) -> Result<Vec<Value>, String> {
    let objects = serde_json::Deserializer::from_slice(line).into_iter::<Value>();
    let objects: Result<Vec<_>, _> = objects.collect();
    let objects = objects.map_err(|e| {
        let begins: String = String::from_utf8_lossy(line).chars().take(60).collect();
        format!("a line is no JSON ({e}): {begins:?}")
    })?;
    match objects.iter().find(|object| !object.is_object()) {
        Some(other) => Err(format!("an object was expected, not {other}")),
        None => Ok(objects),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn gathered(pieces: &[&[u8]]) -> Result<Vec<Value>, String> {
        let mut objects = Objects::default();
        let mut all = vec![];
        for piece in pieces {
            all.extend(objects.push(piece)?);
        }
        all.extend(objects.finish());
        Ok(all)
    }

    #[test]
    fn objects_come_whole_whatever_the_pieces() {
        let expected = vec![json!({"status": "größe"}), json!({"status": "b"}), json!({"status": "c"})];
        let stream = "{\"status\":\"größe\"}\n\r\n{\"status\":\"b\"} {\"status\":\"c\"}".as_bytes();
        for at in 0..=stream.len() {
            assert_eq!(gathered(&[&stream[..at], &stream[at..]]).unwrap(), expected, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        assert_eq!(gathered(&bytes).unwrap(), expected);
        assert_eq!(
            gathered(&[b"{\"status\":\"a\"}\n{\"stat"]).unwrap(),
            [json!({"status": "a"})],
            "half an object is none"
        );
        assert!(gathered(&[b"<html>\n"]).unwrap_err().contains("<html>"));
        assert!(gathered(&[b"17\n"]).unwrap_err().contains("object"));
        assert!(gathered(&[&vec![b' '; MAX_LINE + 1]]).unwrap_err().contains("longer"));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_objects_or_a_reason(bytes: Vec<u8>, at: prop::sample::Index) {
            let at = at.index(bytes.len() + 1);
            let _ = gathered(&[&bytes[..at], &bytes[at..]]);
        }
    }

    #[test]
    fn what_servers_say_is_found_in_their_answers() {
        for (body, said) in [
            (r#"{"error":"no such model"}"#, "no such model"),
            (r#"{"error":{"message":"bad key","code":401}}"#, "bad key"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            (
                "<html><head><title>413 Request Entity Too Large</title></head>",
                "413 Request Entity Too Large",
            ),
            ("plain", "plain"),
        ] {
            assert_eq!(said_in(body.as_bytes()), said);
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after_of("7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after_of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(retry_after_of("Fri, 31 Dec 2100 23:59:59 GMT").unwrap() > Duration::from_secs(86400));
        assert_eq!(retry_after_of("soon"), None);
    }
}
