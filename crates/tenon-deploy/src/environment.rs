//! Deployment Environments: which server, and how to reach it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;
use serde::{Deserialize, Serialize};

use crate::Error;

/// A server that serves models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// What kind of server it is.
    pub kind: EnvironmentKind,
    /// Its address; checked by [`validate`](Self::validate).
    pub url: String,
    /// Where the key is that it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeySource>,
    /// A file of PEM certificates to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Seconds after which a server that is silent counts as hung.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: f64,
    /// Options of the kind; [`EnvironmentKind::options`] lists them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// The kinds of servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EnvironmentKind {
    /// Ollama.
    #[serde(rename = "ollama")]
    Ollama,
    /// The server of llama.cpp.
    #[serde(rename = "llama-server")]
    LlamaServer,
    /// vLLM.
    #[serde(rename = "vllm")]
    Vllm,
    /// Any other server with OpenAI's API: SGLang, TGI and their kin.
    #[serde(rename = "openai")]
    OpenAi,
}

/// Where a key is kept. The key itself is nowhere in Tenon's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// In the environment variable with this name.
    Variable(String),
    /// In this file, alone; white space around it does not count.
    File(PathBuf),
}

/// A key in memory. It has no text but for the request that carries it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

fn default_timeout() -> f64 {
    Environment::DEFAULT_TIMEOUT.as_secs_f64()
}

/// An option that every kind has: its name, and what it is for.
const COMMON_OPTIONS: [(&str, &str); 3] = [
    ("retries", "how often a request is tried again after a failure that may pass [default: 5]"),
    ("retry-delay", "seconds before the first retry; doubled each time [default: 0.5]"),
    ("load-timeout", "seconds that loading the model for its first answer may take [default: 600]"),
];
const OLLAMA_OPTIONS: [(&str, &str); 3] = [
    ("uploads", "files that are sent at once [default: 2]"),
    ("max-upload-rate", "bytes a second that uploads may take in all [default: no limit]"),
    ("create-timeout", "seconds that Ollama may be silent while it makes the model [default: 3600]"),
];

/// Of servers that take no files over their API; what a command may hold is told in docs/deploy.md.
const HANDOVER_OPTIONS: [(&str, &str); 7] = [
    ("models-dir", "directory that this machine and the server share, where models are put"),
    ("server-dir", "the same directory as the server sees it [default: models-dir]"),
    ("copy-command", "command that brings {source} to the server, such as rsync"),
    ("start-command", "command that has the server serve {model} from {path}, and ends"),
    ("stop-command", "command that ends {model} there"),
    ("command-timeout", "seconds that a command may take [default: 3600]"),
    ("served-name", "what the server calls {model} or {path}, where its list does not name what it serves"),
];
/// How a llama-server gets an adapter, which it takes when it is started and at no other time.
const ADAPTER_OPTIONS: [(&str, &str); 2] = [
    ("models-preset", "file that a llama-server that routes was started with as --models-preset"),
    ("adapter-command", "as start-command, for {adapter} on the base at {path}"),
];

impl EnvironmentKind {
    /// All kinds.
    pub const ALL: [EnvironmentKind; 4] = [
        EnvironmentKind::Ollama,
        EnvironmentKind::LlamaServer,
        EnvironmentKind::Vllm,
        EnvironmentKind::OpenAi,
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            EnvironmentKind::Ollama => "ollama",
            EnvironmentKind::LlamaServer => "llama-server",
            EnvironmentKind::Vllm => "vllm",
            EnvironmentKind::OpenAi => "openai",
        }
    }

    /// The options that environments of this kind may have, with what they are for.
    pub fn options(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let own: &[_] = match self {
            EnvironmentKind::Ollama => &OLLAMA_OPTIONS,
            _ => &HANDOVER_OPTIONS,
        };
        let adapters: &[_] = if self == EnvironmentKind::LlamaServer { &ADAPTER_OPTIONS } else { &[] };
        COMMON_OPTIONS.iter().chain(own).chain(adapters).copied()
    }
}

impl FromStr for EnvironmentKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
            format!(
                "{text:?} is no kind of Deployment Environment; there are {}",
                Self::ALL.map(Self::name).join(", ")
            )
        })
    }
}

impl fmt::Display for EnvironmentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Environment {
    /// How long a server may be silent unless said otherwise.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

    /// An environment of a kind at an address, with nothing else said.
    pub fn new(kind: EnvironmentKind, url: impl Into<String>) -> Self {
        Self {
            kind,
            url: url.into(),
            key: None,
            ca: None,
            timeout_seconds: default_timeout(),
            options: BTreeMap::new(),
        }
    }

    /// Checks all that can be checked without the server, and gives the address.
    ///
    /// The address is `http://` or `https://` with a host and perhaps a port and a path; no user,
    /// password, query or fragment.
    pub fn validate(&self) -> Result<Url, Error> {
        let bad_url = |reason: &str| Error::BadUrl { url: redact(&self.url), reason: reason.into() };
        if !self.url.contains("://") {
            return Err(bad_url("it must begin with http:// or https://"));
        }
        let mut url = Url::parse(&self.url).map_err(|e| bad_url(&e.to_string()))?;
        if !["http", "https"].contains(&url.scheme()) {
            return Err(bad_url("it must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad_url(
                "a user or password in it would be shown; give a key by --api-key-env or --api-key-file",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(bad_url("it must end before any ? or #"));
        }
        if !self.timeout_seconds.is_finite() || !(0.001..=86400.0).contains(&self.timeout_seconds) {
            return Err(Error::BadOption {
                option: "timeout".into(),
                value: self.timeout_seconds.to_string(),
                expected: "seconds between 0.001 and 86400".into(),
            });
        }
        for name in self.options.keys() {
            if !self.kind.options().any(|(known, _)| known == name) {
                let known: Vec<_> = self.kind.options().map(|(name, _)| name).collect();
                return Err(Error::UnknownOption {
                    option: name.clone(),
                    kind: self.kind,
                    known: known.join(", "),
                });
            }
        }
        self.count("retries", 0..=100, 0)?;
        self.seconds("retry-delay", Duration::ZERO)?;
        self.seconds("load-timeout", Duration::ZERO)?;
        if self.kind == EnvironmentKind::Ollama {
            self.count("uploads", 1..=16, 1)?;
            self.count("max-upload-rate", 1..=u64::MAX, 1)?;
            self.seconds("create-timeout", Duration::ZERO)?;
        }
        // Paths are appended to it.
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(url)
    }

    /// How long the server may be silent.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout_seconds.clamp(0.001, 86400.0))
    }

    /// A whole number among the options.
    pub(crate) fn count(
        &self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
        default: u64,
    ) -> Result<u64, Error> {
        let Some(text) = self.options.get(name) else { return Ok(default) };
        text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| Error::BadOption {
            option: name.into(),
            value: text.clone(),
            expected: match *range.end() {
                u64::MAX => format!("a whole number from {}", range.start()),
                end => format!("a whole number from {} to {end}", range.start()),
            },
        })
    }

    /// A number of seconds among the options.
    pub(crate) fn seconds(&self, name: &str, default: Duration) -> Result<Duration, Error> {
        let Some(text) = self.options.get(name) else { return Ok(default) };
        let seconds = text.parse::<f64>().ok().filter(|n| (0.0..=604_800.0).contains(n));
        seconds.map(Duration::from_secs_f64).ok_or_else(|| Error::BadOption {
            option: name.into(),
            value: text.clone(),
            expected: "seconds from 0 to 604800".into(),
        })
    }

    /// The key, read from where it is.
    pub fn secret(&self) -> Result<Option<Secret>, Error> {
        self.key.as_ref().map(KeySource::read).transpose()
    }

    /// What a person should know before using it, such as a key that travels in clear.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = vec![];
        if let Ok(url) = self.validate()
            && self.key.is_some()
            && url.scheme() == "http"
            && !is_loopback(&url)
        {
            warnings.push(format!(
                "the key goes to {} unencrypted; use https:// where the server offers it",
                self.url
            ));
        }
        warnings
    }
}

/// Whether an address is this machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        host == "localhost"
            || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// A text that was meant as an address, without what may be a password.
fn redact(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        _ => url.chars().take(200).collect(),
    }
}

/// Longest key.
const MAX_KEY: u64 = 16 << 10;

impl KeySource {
    fn read(&self) -> Result<Secret, Error> {
        let no_key = |reason: String| Error::NoKey { place: self.to_string(), reason };
        let text = match self {
            KeySource::Variable(name) => {
                std::env::var(name).map_err(|_| no_key("it is not set, or not as text".into()))?
            }
            KeySource::File(path) => {
                use std::io::Read;
                let mut text = String::new();
                let read =
                    std::fs::File::open(path).and_then(|file| file.take(MAX_KEY).read_to_string(&mut text));
                read.map_err(|e| no_key(e.to_string()))?;
                text
            }
        };
        let key = text.trim();
        if key.is_empty() {
            return Err(no_key("it is empty".into()));
        }
        if !key.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(no_key("a key is printable ASCII without spaces".into()));
        }
        Ok(Secret(key.into()))
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::Variable(name) => write!(f, "environment variable {name}"),
            KeySource::File(path) => write!(f, "file {}", path.display()),
        }
    }
}

impl Secret {
    /// The key, for the request that carries it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// A text that a server sent, without the key that it may have echoed.
    pub(crate) fn scrub(&self, text: &str) -> String {
        text.replace(&self.0, "***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_that_hide_something_are_refused() {
        let ok =
            |url: &str| Environment::new(EnvironmentKind::Ollama, url).validate().map(|url| url.to_string());
        assert_eq!(ok("http://localhost:11434").unwrap(), "http://localhost:11434/");
        assert_eq!(ok("https://gpu.example/ollama").unwrap(), "https://gpu.example/ollama/");
        for (url, word) in [
            ("localhost:11434", "must begin with"),
            ("ftp://host/", "must begin with"),
            ("http://me:hunter2@host/", "would be shown"),
            ("http://host/?key=hunter2", "before any"),
            ("http://", "empty host"),
            ("", "must begin with"),
        ] {
            let error = ok(url).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("me:hunter2"), "{error}");
        }
    }

    #[test]
    fn options_are_those_of_the_kind_and_in_range() {
        let with = |kind, name: &str, value: &str| {
            let mut environment = Environment::new(kind, "http://localhost");
            environment.options.insert(name.into(), value.into());
            environment.validate().map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(with(EnvironmentKind::Ollama, "uploads", "4"), Ok(()));
        assert!(with(EnvironmentKind::Ollama, "uploads", "0").unwrap_err().contains("from 1 to 16"));
        assert!(with(EnvironmentKind::Ollama, "retry-delay", "-1").unwrap_err().contains("seconds"));
        assert!(with(EnvironmentKind::Ollama, "retry-delay", "NaN").unwrap_err().contains("seconds"));
        assert!(with(EnvironmentKind::OpenAi, "uploads", "4").unwrap_err().contains("retries"));
    }

    #[test]
    fn a_key_is_read_from_its_place_and_has_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "  hunter2\n").unwrap();
        let secret = KeySource::File(file.clone()).read().unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret:?}"), "Secret(***)");
        assert_eq!(secret.scrub("bad key hunter2!"), "bad key ***!");
        std::fs::write(&file, " \n").unwrap();
        assert!(KeySource::File(file.clone()).read().unwrap_err().to_string().contains("empty"));
        std::fs::write(&file, "two\nlines").unwrap();
        assert!(KeySource::File(file).read().is_err());
        let missing = KeySource::Variable("TENON_TEST_NO_SUCH_VARIABLE".into());
        assert!(missing.read().unwrap_err().to_string().contains("TENON_TEST_NO_SUCH_VARIABLE"));
    }
}
