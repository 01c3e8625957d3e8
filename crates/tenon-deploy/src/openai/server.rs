//! What servers with OpenAI's API have in common, llama-server among them: models get there as files,
//! appear in a list, and answer.

use std::time::{Duration, Instant};

use super::api::{self, Listed};
use crate::handover::Handover;
use crate::http::Http;
use crate::{Answer, Condition, Environment, Error, Found, Order, Refusal, Verified, Watch};

/// A server with OpenAI's API.
pub(crate) struct Server {
    pub(crate) http: Http,
    pub(crate) handover: Handover,
    pub(crate) load_timeout: Duration,
    /// What the server must be for its list to be one; nothing where that is asked otherwise.
    expected: Option<&'static str>,
    /// What the server calls a model that its list does not name, with places for `{model}` and `{path}`.
    served_name: Option<String>,
}

impl Server {
    pub(crate) fn new(environment: &Environment, expected: Option<&'static str>) -> Result<Self, Error> {
        let handover = Handover::new(environment)?;
        let served_name = environment.options.get("served-name").cloned();
        if let Some(name) = &served_name
            && (name.is_empty() || (name.contains("{path}") && handover.directory_there("").is_none()))
        {
            return Err(Error::BadOption {
                option: "served-name".into(),
                value: name.clone(),
                expected:
                    "the server's name for a model; with {path} in it, models-dir or server-dir is needed"
                        .into(),
            });
        }
        Ok(Self {
            http: Http::new(environment)?,
            handover,
            load_timeout: environment.seconds("load-timeout", Duration::from_secs(600))?,
            expected,
            served_name,
        })
    }

    /// All models that it lists.
    pub(crate) async fn list(&self, reload: bool, watch: &dyn Watch) -> Result<Vec<Listed>, Error> {
        // Only a llama-server that routes looks at this.
        let result = api::models(&self.http, if reload { "reload" } else { "" }, watch).await;
        let Some(expected) = self.expected else { return result };
        let wrong = |reason: String| {
            let url = self.http.base().to_string();
            Err(Error::WrongServer { url, expected, reason })
        };
        match result {
            Err(Error::Garbage { reason, .. }) => wrong(reason),
            Err(Error::Refused { refusal: Refusal::NotFound, status, .. }) => {
                wrong(format!("it has no v1/models (status {status})"))
            }
            other => other,
        }
    }

    /// The model as the server lists it; one that is not listed by intent, if it answers.
    pub(crate) async fn listed(
        &self,
        model: &str,
        reload: bool,
        watch: &dyn Watch,
    ) -> Result<Option<Listed>, Error> {
        if let Some(name) = &self.served_name {
            let path = self.handover.directory_there(model).unwrap_or_default();
            let id = name.replace("{model}", model).replace("{path}", &path);
            return match api::answer(&self.http, &id, self.load_timeout, watch).await {
                Ok(_) => Ok(Some(Listed { id, ..Listed::default() })),
                Err(Error::NoAnswer { .. }) => Ok(None),
                Err(error) => Err(error),
            };
        }
        let mut list = self.list(reload, watch).await?;
        let exact = list.iter().position(|listed| listed.id == model);
        let near = || {
            list.iter().position(|listed| {
                api::is(&listed.id, model) || listed.root.as_deref().is_some_and(|root| api::is(root, model))
            })
        };
        Ok(exact.or_else(near).map(|at| list.swap_remove(at)))
    }

    pub(crate) fn found(&self, listed: &Listed, model: &str) -> Result<Found, Error> {
        let bytes = listed.meta.as_ref().and_then(|meta| meta["size"].as_u64());
        let weights = self.handover.weights(model)?;
        // It is found again by the name that it was given, whatever the server makes of that.
        let called = (listed.id != model).then(|| self.http.quote(&listed.id));
        Ok(Found { model: model.into(), called, digest: None, weights, bytes })
    }

    /// Waits until a server that was just started has the model; until its health is good it has none.
    pub(crate) async fn appears(&self, model: &str, watch: &dyn Watch) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let last = match self.listed(model, false, watch).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => Error::NotListed { model: model.into() },
                Err(error) if error.may_pass() || matches!(error, Error::WrongServer { .. }) => error,
                Err(error) => return Err(error),
            };
            if begin.elapsed() > self.load_timeout {
                return Err(last);
            }
            api::pause(watch).await?;
        }
    }

    /// What a server that nothing can be asked of yet is taken for, where a command is to start it.
    pub(crate) fn to_be_started(&self, server: &str, error: Error) -> Result<Condition, Error> {
        match error {
            Error::Unreachable { reason, .. } if self.handover.has_start() => Ok(Condition {
                server: server.into(),
                not_running: true,
                free_bytes: self.handover.free_bytes(),
                notes: vec![format!("it does not run ({reason}); start-command is to start it")],
                ..Condition::default()
            }),
            error => Err(error),
        }
    }

    pub(crate) fn verify(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error> {
        let model = &order.model;
        let (listed, answer) = self.http.run(self.http.retrying(watch, || async {
            let Some(listed) = self.listed(model, false, watch).await? else {
                return Err(Error::NotListed { model: model.clone() });
            };
            let answer = api::answer(&self.http, &listed.id, self.load_timeout, watch).await?;
            Ok((listed, answer))
        }))?;
        Ok(Verified { found: self.found(&listed, model)?, answer })
    }

    pub(crate) fn answers(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error> {
        self.http.run(self.http.retrying(watch, || async {
            let listed = self.listed(model, false, watch).await?;
            let id = listed.map_or_else(|| model.to_string(), |listed| listed.id);
            api::answer(&self.http, &id, self.load_timeout, watch).await
        }))
    }

    /// What stays of files that were brought there and that nobody serves.
    pub(crate) fn stays(&self, model: &str, sent: u64) -> Option<String> {
        let place = self.handover.stays(model)?;
        (sent > 0).then(|| format!("{sent} bytes of files {place}"))
    }
}
