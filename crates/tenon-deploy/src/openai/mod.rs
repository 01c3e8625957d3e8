//! vLLM, SGLang, TGI and other servers with OpenAI's API.
//!
//! Over that API models are listed and asked, and nothing else: the directory is
//! handed over where the server reads it, a command of the user's has it served.

pub(crate) mod api;

use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;

use self::api::Listed;
use crate::handover::Handover;
use crate::http::Http;
use crate::{
    Answer, Backend, Capabilities, Condition, Environment, EnvironmentKind, Error, Found, ModelSettings,
    Order, Payload, Refusal, Step, TemplateUse, Verified, Watch,
};

/// A server with OpenAI's API.
pub(crate) struct OpenAi {
    http: Http,
    kind: EnvironmentKind,
    handover: Handover,
    load_timeout: Duration,
}

/// What vLLM (`/version`), TGI (`/info`) and SGLang (`/server_info`) say of themselves.
#[derive(Default, Deserialize)]
#[serde(default)]
struct About {
    version: Option<String>,
}

impl OpenAi {
    pub(crate) fn new(environment: &Environment) -> Result<Self, Error> {
        Ok(Self {
            http: Http::new(environment)?,
            kind: environment.kind,
            handover: Handover::new(environment)?,
            load_timeout: environment.seconds("load-timeout", Duration::from_secs(600))?,
        })
    }

    async fn version(&self, watch: &dyn Watch) -> Result<Option<String>, Error> {
        for path in ["version", "info", "server_info"] {
            let request = self.http.request(Method::GET, path);
            match self.http.json::<About>("asking its version", request, self.http.timeout(), watch).await {
                Ok(About { version: Some(version) }) => return Ok(Some(self.http.quote(&version))),
                // Nice to know, not needed.
                Ok(_) | Err(Error::Garbage { .. } | Error::Refused { .. } | Error::Redirect { .. }) => {}
                Err(error) => return Err(error),
            }
            if self.kind == EnvironmentKind::Vllm {
                break;
            }
        }
        Ok(None)
    }

    async fn list(&self, watch: &dyn Watch) -> Result<Vec<Listed>, Error> {
        let wrong = |reason: String| Error::WrongServer {
            url: self.http.base().to_string(),
            expected: if self.kind == EnvironmentKind::Vllm { "vLLM" } else { "OpenAI-compatible" },
            reason,
        };
        match api::models(&self.http, "", watch).await {
            Err(Error::Garbage { reason, .. }) => Err(wrong(reason)),
            Err(Error::Refused { refusal: Refusal::NotFound, status, .. }) => {
                Err(wrong(format!("it has no v1/models (status {status})")))
            }
            other => other,
        }
    }

    async fn listed(&self, model: &str, watch: &dyn Watch) -> Result<Option<Listed>, Error> {
        let mut list = self.list(watch).await?;
        let exact = list.iter().position(|listed| listed.id == model);
        let near = || {
            list.iter().position(|listed| {
                api::is(&listed.id, model) || listed.root.as_deref().is_some_and(|root| api::is(root, model))
            })
        };
        Ok(exact.or_else(near).map(|at| list.swap_remove(at)))
    }

    fn found(&self, listed: &Listed, model: &str) -> Result<Found, Error> {
        Ok(Found {
            model: self.http.quote(&listed.id),
            digest: None,
            weights: self.handover.weights(model)?,
            bytes: None,
        })
    }

    /// Waits until the server lists the model; one that starts is not there at first.
    async fn appears(&self, model: &str, watch: &dyn Watch) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let last = match self.listed(model, watch).await {
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
}

impl Backend for OpenAi {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            gguf: false,
            safetensors: true,
            quantizes: false,
            template: TemplateUse::Ignored,
            removes: self.handover.removes(),
        }
    }

    fn model_name(&self, wanted: &str, exact: bool) -> Result<String, Error> {
        api::model_name(wanted, exact)
    }

    fn check(&self, _: Option<&ModelSettings>, watch: &dyn Watch) -> Result<Condition, Error> {
        self.http.run(self.http.retrying(watch, || async {
            let models = self.list(watch).await?;
            let mut notes = Vec::new();
            if !self.handover.has_start() {
                notes.push(
                    "no start-command is set: the server must be started with the model by other means, and is then verified".into(),
                );
            }
            if !self.handover.moves_files() {
                notes.push("neither models-dir nor copy-command is set: the server must see the model where it lies here".into());
            }
            Ok(Condition {
                server: if self.kind == EnvironmentKind::Vllm { "vLLM" } else { "OpenAI-compatible server" }.into(),
                version: self.version(watch).await?,
                models: models.iter().map(|listed| self.http.quote(&listed.id)).collect(),
                model_bytes: None,
                loaded_bytes: None,
                free_bytes: None,
                notes,
            })
        }))
    }

    fn find(&self, model: &str, watch: &dyn Watch) -> Result<Option<Found>, Error> {
        let listed = self.http.run(self.http.retrying(watch, || self.listed(model, watch)))?;
        listed.map(|listed| self.found(&listed, model)).transpose()
    }

    fn deploy(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
        if !matches!(order.payload, Payload::Directory { .. }) {
            return Err(Error::Unsupported {
                what: "deploying a GGUF".into(),
                kind: self.kind,
                reason: "it takes the model's directory: deploy it with no_quantization".into(),
            });
        }
        watch.step(Step::Uploading)?;
        self.handover.bring(order, watch)?;
        watch.step(Step::Creating)?;
        let started = self.handover.start(order, watch)?;
        self.http.run(async {
            if started {
                return self.appears(&order.model, watch).await;
            }
            match self.http.retrying(watch, || self.listed(&order.model, watch)).await? {
                Some(_) => Ok(()),
                None => Err(Error::NotServed {
                    model: order.model.clone(),
                    path: self.handover.path_there(&order.model, &order.payload),
                }),
            }
        })
    }

    fn verify(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error> {
        let model = &order.model;
        let answered = self.http.run(self.http.retrying(watch, || async {
            let Some(listed) = self.listed(model, watch).await? else {
                return Err(Error::NotListed { model: model.clone() });
            };
            let answer = api::answer(&self.http, &listed.id, self.load_timeout, watch).await?;
            Ok((listed, answer))
        }))?;
        let (listed, answer) = answered;
        Ok(Verified { found: self.found(&listed, model)?, answer })
    }

    fn answers(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error> {
        self.http.run(self.http.retrying(watch, || async {
            let listed = self.listed(model, watch).await?;
            let id = listed.map_or_else(|| model.to_string(), |listed| listed.id);
            api::answer(&self.http, &id, self.load_timeout, watch).await
        }))
    }

    fn remove(&self, model: &str, watch: &dyn Watch) -> Result<bool, Error> {
        if !self.handover.removes() {
            return Err(Error::Unsupported {
                what: "removing a model".into(),
                kind: self.kind,
                reason: "its API cannot; set --option stop-command=..., or end it there".into(),
            });
        }
        self.handover.remove(model, watch)
    }
}
