//! Answers that say what is wrong: problem details (RFC 9457) with codes that stay the same.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tenon::{CheckpointError, DeployError, Error, Fault, RegistryError};
use utoipa::ToSchema;

/// What a client can rely on to tell problems apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // docs/server.md has a line for each
pub(crate) enum Code {
    MalformedRequest,
    InvalidBody,
    InvalidQuery,
    InvalidInput,
    InvalidName,
    InvalidTemplate,
    Unauthorized,
    CsrfTokenMissing,
    CrossOrigin,
    HostNotAllowed,
    PathNotAllowed,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    NameTaken,
    InUse,
    NotOpen,
    NotRetryable,
    IdempotencyKeyReused,
    RequestInProgress,
    BodyTooLarge,
    UnsupportedMediaType,
    RangeNotSatisfiable,
    TooManyRequests,
    DiskFull,
    EnvironmentFailed,
    Busy,
    Stopping,
    Internal,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Code::MalformedRequest | Code::InvalidQuery => StatusCode::BAD_REQUEST,
            Code::InvalidBody | Code::InvalidInput | Code::InvalidName | Code::InvalidTemplate => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Code::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::CsrfTokenMissing | Code::CrossOrigin | Code::PathNotAllowed => StatusCode::FORBIDDEN,
            Code::HostNotAllowed => StatusCode::MISDIRECTED_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::NameTaken | Code::InUse | Code::NotOpen | Code::NotRetryable | Code::RequestInProgress => {
                StatusCode::CONFLICT
            }
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Code::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Code::DiskFull => StatusCode::INSUFFICIENT_STORAGE,
            Code::EnvironmentFailed => StatusCode::BAD_GATEWAY,
            Code::Busy | Code::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Code::MalformedRequest => "The request cannot be read",
            Code::InvalidBody => "The body does not have the fields that are expected",
            Code::InvalidQuery => "The query does not have the parameters that are expected",
            Code::InvalidInput => "An input is wrong",
            Code::InvalidName => "That is no name",
            Code::InvalidTemplate => "The Deployment Template File is wrong",
            Code::Unauthorized => "A token is needed",
            Code::CsrfTokenMissing => "The request does not show that it comes from our pages",
            Code::CrossOrigin => "The request comes from another site",
            Code::HostNotAllowed => "The server does not go by this name",
            Code::PathNotAllowed => "The path is not under an allowed directory",
            Code::NotFound => "Not found",
            Code::MethodNotAllowed => "Not a method of this resource",
            Code::RequestTimeout => "The request took too long",
            Code::NameTaken => "The name is taken",
            Code::InUse => "It is in use",
            Code::NotOpen => "The job has ended already",
            Code::NotRetryable => "The job has not failed",
            Code::IdempotencyKeyReused => "The idempotency key was used for another request",
            Code::RequestInProgress => "The first request with this idempotency key is under way",
            Code::BodyTooLarge => "The body is too large",
            Code::UnsupportedMediaType => "The body is not of the type that is expected",
            Code::RangeNotSatisfiable => "The file does not have these bytes",
            Code::TooManyRequests => "Too many wrong tokens",
            Code::DiskFull => "No room on the disk",
            Code::EnvironmentFailed => "The Deployment Environment did not do it",
            Code::Busy => "The server is busy",
            Code::Stopping => "The server is stopping",
            Code::Internal => "The server failed",
        }
    }
}

/// Problem details as they are sent.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// A URI that names the code: `urn:tenon:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(rename = "type")]
    kind: String,
    /// The code in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong in this case.
    detail: String,
    /// What stays the same from version to version.
    code: Code,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    hint: Option<&'static str>,
    /// Places in a text that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Place>,
}

/// A place in a text and what is wrong there.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// A request's bad end.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    code: Code,
    detail: String,
    hint: Option<&'static str>,
    places: Vec<Place>,
    retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), hint: None, places: vec![], retry_after: None }
    }

    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    pub(crate) fn places(mut self, places: Vec<Place>) -> Self {
        self.places = places;
        self
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Says something in place of something else.
    pub(crate) fn replace(mut self, from: &str, to: &str) -> Self {
        self.detail = self.detail.replace(from, to);
        self
    }

    pub(crate) fn not_found(what: &str, name: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no {what} {name:?}"))
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let code = serde_json::to_value(self.code).expect("a word");
        if status.is_server_error() {
            tracing::error!(code = code.as_str(), detail = self.detail, "problem");
        }
        let body = ProblemBody {
            kind: format!("urn:tenon:problem:{}", code.as_str().unwrap_or_default()),
            title: self.code.title(),
            status: status.as_u16(),
            detail: self.detail,
            code: self.code,
            hint: self.hint,
            errors: self.places,
        };
        let body = serde_json::to_vec(&body).expect("texts and numbers always serialize");
        let mut response =
            (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        Error::from(error).into()
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = error.to_string();
        let code = code_of(&error);
        let mut problem = Problem::new(code, detail);
        if let Error::Deploy(DeployError::Template { file, faults }) = &error {
            problem.detail = format!("{file} has {}", mistakes(faults.len()));
            problem = problem.places(faults.iter().map(Place::from).collect());
        }
        if let Error::Registry(RegistryError::NoRoom { .. }) = error {
            problem =
                problem.hint("delete Complete Models that are not needed, or give the home a larger disk");
        }
        problem
    }
}

fn mistakes(n: usize) -> String {
    if n == 1 { "a mistake".into() } else { format!("{n} mistakes") }
}

impl From<&Fault> for Place {
    fn from(fault: &Fault) -> Self {
        Self { line: fault.line, column: fault.column, message: fault.reason.clone() }
    }
}

fn code_of(error: &Error) -> Code {
    use std::io::ErrorKind;
    match error {
        Error::Registry(error) => match error {
            RegistryError::NotFound { .. } => Code::NotFound,
            RegistryError::Taken { .. } => Code::NameTaken,
            RegistryError::InUse { .. } => Code::InUse,
            RegistryError::NotOpen { .. } | RegistryError::Cancelled { .. } => Code::NotOpen,
            RegistryError::SameDeployment { .. } | RegistryError::NotSaved { .. } => Code::InUse,
            RegistryError::NoRoom { .. } => Code::DiskFull,
            RegistryError::Name(_) => Code::InvalidName,
            _ => Code::Internal,
        },
        Error::OutExists { .. } => Code::NameTaken,
        Error::NotRetryable { .. } => Code::NotRetryable,
        Error::EmptyTemplate { .. } => Code::InvalidTemplate,
        Error::NoTemplate { .. } => Code::NotFound,
        Error::NotSwept { error, .. } | Error::LeftThere { error, .. } | Error::NotEnded { error, .. } => {
            code_of(error)
        }
        Error::NameTakenThere { .. } => Code::NameTaken,
        Error::NotTheSame { .. } => Code::InUse,
        Error::Deploy(error) => match error {
            DeployError::Template { .. }
            | DeployError::NeedsTemplate { .. }
            | DeployError::NoChatTemplate { .. }
            | DeployError::NoSuggestion { .. } => Code::InvalidTemplate,
            DeployError::BadUrl { .. }
            | DeployError::UnknownOption { .. }
            | DeployError::BadOption { .. }
            | DeployError::NoKey { .. }
            | DeployError::Certificates { .. }
            | DeployError::BadModelName { .. }
            | DeployError::Unsupported { .. } => Code::InvalidInput,
            _ => Code::EnvironmentFailed,
        },
        Error::Checkpoint(CheckpointError::TargetExists { .. } | CheckpointError::TargetNotAModel { .. }) => {
            Code::NameTaken
        }
        Error::Checkpoint(CheckpointError::DiskFull { .. }) => Code::DiskFull,
        Error::Checkpoint(CheckpointError::Io { source, .. }) => match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::DiskFull,
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::PermissionDenied => {
                Code::InvalidInput
            }
            _ => Code::Internal,
        },
        Error::Checkpoint(CheckpointError::WorkerPanicked(_)) => Code::Internal,
        Error::Checkpoint(_) | Error::Merge(_) | Error::InputChanged { .. } => Code::InvalidInput,
        _ => Code::InvalidInput,
    }
}
