//! Sessions of pages: a cookie that only this site's pages send, and a token that only they can read.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;
use tenon::Digest;

use super::token::random;

/// Name of the cookie.
const COOKIE: &str = "tenon_session";
/// How long a session lasts.
const LIFE: Duration = Duration::from_secs(12 * 3600);
/// Sessions kept; the oldest goes when there is one more.
const MAX_SESSIONS: usize = 1000;

/// Open sessions, by the SHA-256 of their cookie.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<HashMap<String, Session>>,
}

/// An open session.
#[derive(Clone)]
pub(crate) struct Session {
    since: Instant,
    /// What its pages show when they change something.
    pub(crate) csrf: String,
}

impl Session {
    pub(crate) fn is_csrf(&self, shown: &[u8]) -> bool {
        self.csrf.as_bytes().ct_eq(shown).into()
    }
}

impl Sessions {
    /// Opens one: the cookie's value, and the session.
    pub(crate) fn open(&self) -> Result<(String, Session), String> {
        let (id, session) = (random()?, Session { since: Instant::now(), csrf: random()? });
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| session.since.elapsed() < LIFE);
        if open.len() >= MAX_SESSIONS
            && let Some(oldest) = open.iter().min_by_key(|(_, session)| session.since)
        {
            let key = oldest.0.clone();
            open.remove(&key);
        }
        open.insert(key(&id), session.clone());
        Ok((id, session))
    }

    /// The session with a cookie.
    pub(crate) fn find(&self, id: &str) -> Option<Session> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&key(id)).filter(|session| session.since.elapsed() < LIFE).cloned()
    }

    /// Ends the session with a cookie.
    pub(crate) fn close(&self, id: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(id));
    }
}

fn key(id: &str) -> String {
    Digest::of(id.as_bytes()).to_string()
}

/// The cookie of a request.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// The `Set-Cookie` that opens a session, or ends it where there is no id.
pub(crate) fn set_cookie(id: Option<&str>) -> String {
    let (value, age) = id.map_or(("", 0), |id| (id, LIFE.as_secs()));
    format!("{COOKIE}={value}; HttpOnly; SameSite=Strict; Path=/; Max-Age={age}")
}
