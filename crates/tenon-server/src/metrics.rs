//! Figures for Prometheus.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::app::App;
use crate::problem::{Code, Problem};
use crate::view::{Job, JobState};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Request {
    method: String,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    method: String,
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct JobLabel {
    state: &'static str,
}

/// All figures.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Request, Counter>,
    durations: Family<Route, Histogram, fn() -> Histogram>,
    jobs: Family<JobLabel, Gauge>,
    models: Gauge,
    event_streams: Gauge,
    pub(crate) connections: Gauge,
    pub(crate) merged_bytes: Counter<u64, AtomicU64>,
    pub(crate) wrong_tokens: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let durations: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_25, 4.0, 9));
        let mut metrics = Self {
            registry: Registry::with_prefix("tenon"),
            requests: Family::default(),
            durations: Family::new_with_constructor(durations),
            jobs: Family::default(),
            models: Gauge::default(),
            event_streams: Gauge::default(),
            connections: Gauge::default(),
            merged_bytes: Counter::default(),
            wrong_tokens: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("http_requests", "Requests answered", metrics.requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time until the answer began",
            Unit::Seconds,
            metrics.durations.clone(),
        );
        registry.register("jobs", "Jobs in the catalogue", metrics.jobs.clone());
        registry.register("complete_models", "Complete Models", metrics.models.clone());
        registry.register("event_streams", "Event streams open", metrics.event_streams.clone());
        registry.register("connections", "Connections open", metrics.connections.clone());
        registry.register_with_unit(
            "merged",
            "Bytes that Savings of this process merged and read",
            Unit::Bytes,
            metrics.merged_bytes.clone(),
        );
        registry.register("wrong_tokens", "Wrong tokens shown", metrics.wrong_tokens.clone());
        metrics
    }

    /// Counts an answer. The route is the pattern, not the path: clients must not be able to make labels.
    pub(crate) fn answered(&self, method: &str, route: &str, status: u16, time: Duration) {
        let (method, route) = (method.to_string(), route.to_string());
        self.requests.get_or_create(&Request { method: method.clone(), route: route.clone(), status }).inc();
        self.durations.get_or_create(&Route { method, route }).observe(time.as_secs_f64());
    }

    pub(crate) fn count_jobs(&self, jobs: &[Job]) {
        use JobState::{Cancelled, Done, Failed, Queued, Running};
        for (state, word) in [
            (Queued, "queued"),
            (Running, "running"),
            (Done, "done"),
            (Failed, "failed"),
            (Cancelled, "cancelled"),
        ] {
            let n = jobs.iter().filter(|job| job.state == state).count();
            self.jobs.get_or_create(&JobLabel { state: word }).set(n as i64);
        }
    }
}

/// Figures for Prometheus, as OpenMetrics text.
#[utoipa::path(
    get, path = "/metrics", tag = "Server", operation_id = "metrics",
    responses((status = 200, description = "The figures", content_type = "application/openmetrics-text", body = String),
              (status = 500, description = "The figures cannot be written"))
)]
pub(crate) async fn get(State(app): State<App>) -> Response {
    let metrics = &app.metrics;
    metrics.models.set(app.lists.now().complete.items.len() as i64);
    let streams = app.options.limits.event_streams - app.streams.available_permits();
    metrics.event_streams.set(streams as i64);
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &metrics.registry).is_err() {
        return Problem::new(Code::Internal, "the figures cannot be written").into_response();
    }
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}
