//! Lists: which records, in which order, which part.

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tenon::Timestamp;
use utoipa::{IntoParams, ToSchema};

use crate::list::{Key, List, Listed};
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

impl ListQuery {
    /// The same text for the same query.
    fn key(&self) -> String {
        format!("{self:?}")
    }

    fn page<T: Listed>(&self, list: &List<T>) -> Vec<u8> {
        let (key, down) = self.sort.unwrap_or(Sort::CreatedDown).key();
        let q = self.q.as_deref().unwrap_or_default().to_lowercase();
        let order = list.order(key);
        let (base, state) = (self.base.as_deref(), self.state.as_deref());
        let (offset, limit) = (self.offset.unwrap_or(0), self.limit.unwrap_or(50));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let all = |place: &u32| *place as usize;
        if q.is_empty() && base.is_none() && state.is_none() {
            let total = order.len();
            let places: Vec<usize> = match down {
                false => order.iter().map(all).skip(from).take(limit as usize).collect(),
                true => order.iter().rev().map(all).skip(from).take(limit as usize).collect(),
            };
            return self.write(list, &places, total);
        }
        let searched = (!q.is_empty()).then(|| list.searched());
        let mut places: Vec<usize> = order
            .iter()
            .map(all)
            .filter(|place| searched.is_none_or(|searched| searched[*place].contains(&q)))
            .filter(|place| base.is_none_or(|base| list.items[*place].base() == Some(base)))
            .filter(|place| state.is_none_or(|state| list.items[*place].state() == Some(state)))
            .collect();
        if down {
            places.reverse();
        }
        let total = places.len();
        let from = from.min(total);
        let to = total.min(from + limit as usize);
        self.write(list, &places[from..to], total)
    }

    fn write<T: Listed>(&self, list: &List<T>, places: &[usize], total: usize) -> Vec<u8> {
        let items: Vec<&T> = places.iter().map(|place| &list.items[*place]).collect();
        let (offset, limit) = (self.offset.unwrap_or(0), self.limit.unwrap_or(50));
        serde_json::to_vec(&Page { items, total, offset, limit })
            .expect("texts, numbers and lists always serialize")
    }
}

impl Sort {
    /// By what, and whether from the largest on.
    fn key(self) -> (Key, bool) {
        match self {
            Sort::Name => (Key::Name, false),
            Sort::NameDown => (Key::Name, true),
            Sort::Base => (Key::Base, false),
            Sort::BaseDown => (Key::Base, true),
            Sort::Created => (Key::Created, false),
            Sort::CreatedDown => (Key::Created, true),
            Sort::Bytes => (Key::Bytes, false),
            Sort::BytesDown => (Key::Bytes, true),
            Sort::State => (Key::State, false),
            Sort::StateDown => (Key::State, true),
        }
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
    let body: Bytes = list.page(&query.key(), |list| query.page(list));
    Ok((head, [(header::CONTENT_TYPE, "application/json")], body).into_response())
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
    fn state(&self) -> Option<&str> {
        Some(self.state.word())
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
    fn state(&self) -> Option<&str> {
        Some(self.state.word())
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
    fn state(&self) -> Option<&str> {
        Some(&self.state)
    }
}
