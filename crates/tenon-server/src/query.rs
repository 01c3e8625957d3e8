//! Lists: which records, in which order, which part.

use std::cmp::Ordering;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tenon::Timestamp;
use utoipa::{IntoParams, ToSchema};

use crate::lists::List;
use crate::problem::{Code, Problem};
use crate::view::{
    BaseModelView, CompleteModelView, CustomizedModelView, EnvironmentView, Job, LiveModelView,
};

/// Which records of a list, in which order, which part.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only records in whose names this text occurs, in whatever case.
    #[param(max_length = 200, nullable = false)]
    q: Option<String>,
    /// Only records of this Base Model.
    #[param(max_length = 200, nullable = false)]
    base: Option<String>,
    /// Only records in this state (of lists whose records have one).
    #[param(max_length = 20, nullable = false)]
    state: Option<String>,
    /// The order; with a dash before it, the other way round. What a record does not have comes first.
    #[param(inline, nullable = false)]
    sort: Option<Sort>,
    /// Records to leave out at the beginning.
    #[param(minimum = 0, maximum = 1_000_000_000, nullable = false)]
    offset: Option<u64>,
    /// Records to answer with at most; 50 where nothing is said.
    #[param(minimum = 1, maximum = 1000, nullable = false)]
    limit: Option<u64>,
}

/// An order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[allow(missing_docs)]
pub(crate) enum Sort {
    #[serde(rename = "name")]
    Name,
    #[serde(rename = "-name")]
    NameDown,
    #[serde(rename = "base")]
    Base,
    #[serde(rename = "-base")]
    BaseDown,
    #[serde(rename = "created")]
    Created,
    #[serde(rename = "-created")]
    CreatedDown,
    #[serde(rename = "bytes")]
    Bytes,
    #[serde(rename = "-bytes")]
    BytesDown,
    #[serde(rename = "state")]
    State,
    #[serde(rename = "-state")]
    StateDown,
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    /// The records.
    items: Vec<T>,
    /// Records that the query matches.
    total: usize,
    /// Records left out at the beginning.
    offset: u64,
    /// Records asked for.
    limit: u64,
}

/// A record that lists are made of.
pub(crate) trait Listed: Serialize {
    fn name(&self) -> &str;
    fn created(&self) -> Timestamp;
    /// Texts in which `q` is looked for.
    fn texts(&self) -> Vec<&str>;
    fn base(&self) -> Option<&str> {
        None
    }
    fn bytes(&self) -> u64 {
        0
    }
    /// As the API writes it.
    fn state(&self) -> Option<String> {
        None
    }
}

impl ListQuery {
    /// The same text for the same query.
    fn key(&self) -> String {
        format!("{self:?}")
    }

    fn page<T: Listed>(&self, items: &[T]) -> Vec<u8> {
        let q = self.q.as_deref().unwrap_or_default().to_lowercase();
        let mut matching: Vec<&T> = items
            .iter()
            .filter(|item| q.is_empty() || item.texts().iter().any(|text| text.to_lowercase().contains(&q)))
            .filter(|item| self.base.as_deref().is_none_or(|base| item.base() == Some(base)))
            .filter(|item| self.state.is_none() || item.state() == self.state)
            .collect();
        let sort = self.sort.unwrap_or(Sort::CreatedDown);
        // Names are unique, so that pages do not overlap.
        matching.sort_by(|a, b| {
            let order = match sort {
                Sort::Name | Sort::NameDown => Ordering::Equal,
                Sort::Base | Sort::BaseDown => a.base().cmp(&b.base()),
                Sort::Created | Sort::CreatedDown => a.created().cmp(&b.created()),
                Sort::Bytes | Sort::BytesDown => a.bytes().cmp(&b.bytes()),
                Sort::State | Sort::StateDown => a.state().cmp(&b.state()),
            };
            order.then_with(|| a.name().cmp(b.name()))
        });
        if matches!(
            sort,
            Sort::NameDown | Sort::BaseDown | Sort::CreatedDown | Sort::BytesDown | Sort::StateDown
        ) {
            matching.reverse();
        }
        let (offset, limit) = (self.offset.unwrap_or(0), self.limit.unwrap_or(50));
        let total = matching.len();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(total);
        let items: Vec<&T> = matching.into_iter().skip(from).take(limit as usize).collect();
        serde_json::to_vec(&Page { items, total, offset, limit })
            .expect("texts, numbers and lists always serialize")
    }
}

/// Answers with a part of a list; without one where the client has it already.
pub(crate) fn answer<T: Listed>(
    list: &List<T>,
    epoch: u64,
    query: &ListQuery,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    if !(1..=1000).contains(&query.limit.unwrap_or(50)) {
        return Err(Problem::new(Code::InvalidQuery, "limit must be 1 to 1000"));
    }
    if query.offset.is_some_and(|offset| offset > 1_000_000_000) {
        return Err(Problem::new(Code::InvalidQuery, "offset must be 0 to 1000000000"));
    }
    let long = |text: &Option<String>, max| text.as_ref().is_some_and(|text| text.chars().count() > max);
    if long(&query.q, 200) || long(&query.base, 200) || long(&query.state, 20) {
        return Err(Problem::new(Code::InvalidQuery, "a parameter is too long"));
    }
    let etag = format!("\"{epoch:x}-{:x}\"", list.version);
    let known =
        headers.get_all(header::IF_NONE_MATCH).iter().any(|known| known.as_bytes() == etag.as_bytes());
    let etag = HeaderValue::from_str(&etag).expect("digits");
    let head = [(header::ETAG, etag), (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))];
    if known {
        return Ok((StatusCode::NOT_MODIFIED, head).into_response());
    }
    let body: Bytes = list.page(&query.key(), |items| query.page(items));
    Ok((head, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn word<T: Serialize>(state: T) -> Option<String> {
    serde_json::to_value(state).ok()?.as_str().map(str::to_string)
}

impl Listed for CompleteModelView {
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn texts(&self) -> Vec<&str> {
        vec![&self.name, &self.base, &self.customized]
    }
    fn base(&self) -> Option<&str> {
        Some(&self.base)
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn state(&self) -> Option<String> {
        word(self.state)
    }
}

impl Listed for CustomizedModelView {
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn texts(&self) -> Vec<&str> {
        vec![&self.name, &self.base, &self.train_name]
    }
    fn base(&self) -> Option<&str> {
        Some(&self.base)
    }
}

impl Listed for BaseModelView {
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn texts(&self) -> Vec<&str> {
        std::iter::once(&*self.name).chain(self.repository.as_deref()).collect()
    }
    fn base(&self) -> Option<&str> {
        Some(&self.name)
    }
    fn bytes(&self) -> u64 {
        self.model.bytes
    }
}

impl Listed for Job {
    fn name(&self) -> &str {
        &self.model
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn texts(&self) -> Vec<&str> {
        std::iter::once(&*self.model).chain(self.environment.as_deref()).collect()
    }
    fn base(&self) -> Option<&str> {
        self.base.as_deref()
    }
    fn bytes(&self) -> u64 {
        self.total_bytes
    }
    fn state(&self) -> Option<String> {
        word(self.state)
    }
}

impl Listed for EnvironmentView {
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn texts(&self) -> Vec<&str> {
        vec![&self.name, &self.url, &self.kind]
    }
}

impl Listed for LiveModelView {
    fn name(&self) -> &str {
        &self.name
    }
    fn created(&self) -> Timestamp {
        self.created
    }
    fn texts(&self) -> Vec<&str> {
        vec![&self.name, &self.complete, &self.base]
    }
    fn base(&self) -> Option<&str> {
        Some(&self.base)
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn state(&self) -> Option<String> {
        Some(self.state.clone())
    }
}
