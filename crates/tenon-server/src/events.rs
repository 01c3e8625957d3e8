//! What happened, as a stream of server-sent events that can be taken up again where it broke off.
//!
//! Every event has a number. A client that comes back says the last it saw (browsers do so by
//! themselves, as `Last-Event-ID`) and gets those it missed; where they are no longer known, because
//! it was away too long or the server began anew, it gets `reset` and asks for the lists again.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use crate::app::App;
use crate::problem::{Code, Problem};

/// Events kept for those who come back.
const KEPT: usize = 4096;
/// Events that wait for one client. One that is slower gets `reset`.
const WAITING: usize = 64;
/// A sign of life, by which a client that is gone is noticed.
const ALIVE: Duration = Duration::from_secs(15);

/// Where events come together.
pub(crate) struct Hub {
    /// Of this process: numbers begin anew with each.
    epoch: u64,
    kept: Mutex<VecDeque<Arc<Happened>>>,
    sender: broadcast::Sender<Arc<Happened>>,
}

#[derive(Debug)]
pub(crate) struct Happened {
    number: u64,
    name: &'static str,
    data: String,
}

/// What was missed (nothing if that is not known any more), the number that this is up to date with, and
/// what comes.
type Subscription = (Option<Vec<Arc<Happened>>>, u64, broadcast::Receiver<Arc<Happened>>);

impl Hub {
    pub(crate) fn new() -> Self {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Self { epoch: since.as_micros() as u64, kept: Mutex::default(), sender: broadcast::Sender::new(1024) }
    }

    /// Of this process.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Tells everybody who listens.
    pub(crate) fn send(&self, name: &'static str, data: String) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let number = kept.back().map_or(1, |last| last.number + 1);
        let event = Arc::new(Happened { number, name, data });
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Fails when nobody listens.
        let _ = self.sender.send(event);
    }

    /// What a client missed and what comes.
    fn subscribe(&self, last: Option<&str>) -> Subscription {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = kept.back().map_or(0, |event| event.number);
        let receiver = self.sender.subscribe();
        let Some(last) = last else { return (Some(vec![]), newest, receiver) };
        let seen = last.split_once('-').and_then(|(epoch, number)| {
            let number: u64 = number.parse().ok()?;
            (epoch.parse() == Ok(self.epoch) && number <= newest).then_some(number)
        });
        let known = seen.filter(|seen| kept.front().is_none_or(|first| first.number <= seen + 1));
        let missed = known.map(|seen| kept.iter().filter(|event| event.number > seen).cloned().collect());
        (missed, newest, receiver)
    }

    fn event(&self, happened: &Happened) -> Event {
        Event::default().id(self.id(happened.number)).event(happened.name).data(&happened.data)
    }

    /// Tells a client to ask for the lists, and from where it is up to date then.
    fn reset(&self, number: u64) -> Event {
        Event::default().id(self.id(number)).event("reset").data("{}")
    }

    fn hello(&self, number: u64) -> Event {
        Event::default().id(self.id(number)).event("hello").data("{}")
    }

    fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.epoch)
    }
}

/// Where a stream begins.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Since {
    /// As the header `Last-Event-ID`, for clients that cannot set it.
    #[param(max_length = 64)]
    last_event_id: Option<String>,
}

/// What happens, as it happens.
///
/// Server-sent events: `job` (data: the job, at each change and every fraction of a second while it
/// runs), `base-model`, `customized-model`, `complete-model`, `environment`, `live-model` (data:
/// `action` and `name`), `hello` at the beginning, and `reset` when events were missed for good.
#[utoipa::path(
    get, path = "/events", tag = "Events", operation_id = "events",
    params(Since, ("last-event-id" = Option<String>, Header, description = "The last event that was seen", max_length = 64)),
    responses(
        (status = 200, description = "The stream; it ends after an hour at most", content_type = "text/event-stream", body = String),
        (status = 400, description = "Not a query"),
        (status = 503, description = "Too many streams"),
    )
)]
pub(crate) async fn stream(
    State(app): State<App>,
    headers: HeaderMap,
    since: Result<Query<Since>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(since)) = since else {
        return Problem::new(Code::InvalidQuery, "the only parameter is last_event_id").into_response();
    };
    let Ok(permit) = app.streams.clone().try_acquire_owned() else {
        return Problem::new(Code::Busy, "there are as many event streams as the server keeps")
            .retry_after(30)
            .into_response();
    };
    let header = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let last = header.map(str::to_string).or(since.last_event_id);
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(feed(app, last, sender, permit));
    let events = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)).into_response();
    // Proxies that buffer would hold events back.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

async fn feed(app: App, last: Option<String>, sender: mpsc::Sender<Event>, _permit: OwnedSemaphorePermit) {
    let (missed, newest, mut events) = app.events.subscribe(last.as_deref());
    let mut stopping = app.stopping.subscribe();
    let end = tokio::time::sleep(app.options.limits.event_stream_time);
    tokio::pin!(end);
    let beginning = match missed {
        Some(missed) if missed.is_empty() => vec![app.events.hello(newest)],
        Some(missed) => missed.iter().map(|happened| app.events.event(happened)).collect(),
        None => vec![app.events.reset(newest)],
    };
    let hub = app.clone();
    let go_on = async {
        for event in beginning {
            sender.send(event).await.ok()?;
        }
        loop {
            let event = match events.recv().await {
                Ok(happened) => hub.events.event(&happened),
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    let (_, newest, again) = hub.events.subscribe(None);
                    events = again;
                    hub.events.reset(newest)
                }
                Err(broadcast::error::RecvError::Closed) => return None::<()>,
            };
            sender.send(event).await.ok()?;
        }
    };
    tokio::select! {
        _ = go_on => {}
        () = sender.closed() => {}
        () = &mut end => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_gets_what_was_missed_or_is_told_that_it_is_lost() {
        let hub = Hub::new();
        let missed = |last: &str| {
            let (missed, newest, _) = hub.subscribe(Some(last));
            (missed.map(|missed| missed.iter().map(|event| event.number).collect::<Vec<_>>()), newest)
        };
        let id = |number: u64| hub.id(number);
        assert_eq!(missed(&id(0)), (Some(vec![]), 0));
        for _ in 0..5 {
            hub.send("job", "{}".into());
        }
        assert_eq!(missed(&id(3)), (Some(vec![4, 5]), 5));
        assert_eq!(missed(&id(5)), (Some(vec![]), 5));
        for unknown in ["", "x", &id(6), "1-2", &format!("{}-", hub.epoch)] {
            assert_eq!(missed(unknown), (None, 5), "{unknown}");
        }
        for _ in 0..KEPT {
            hub.send("job", "{}".into());
        }
        assert_eq!(missed(&id(4)).0, None, "too long ago");
        assert_eq!(missed(&id(5)).0.map(|missed| missed.len()), Some(KEPT));
    }
}
