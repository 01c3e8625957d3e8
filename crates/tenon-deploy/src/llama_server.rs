//! The server of llama.cpp.
//!
//! Started without a model it routes: it looks into its `--models-dir`, loads
//! models when it is told to, and runs each in a process of its own. Started with
//! a model it serves that one, and a command of the user's starts it anew.
//! Its API: `tools/server/README.md` of llama.cpp.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::handover::Handover;
use crate::http::Http;
use crate::openai::api::{self, Listed};
use crate::{
    Answer, Backend, Capabilities, Condition, Environment, EnvironmentKind, Error, Found, ModelSettings,
    Order, Payload, Refusal, Step, TemplateUse, Verified, Watch,
};

/// A llama-server.
pub(crate) struct LlamaServer {
    http: Http,
    handover: Handover,
    load_timeout: Duration,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Props {
    role: Option<String>,
    build_info: Option<String>,
    model_path: Option<String>,
}

impl LlamaServer {
    pub(crate) fn new(environment: &Environment) -> Result<Self, Error> {
        Ok(Self {
            http: Http::new(environment)?,
            handover: Handover::new(environment)?,
            load_timeout: environment.seconds("load-timeout", Duration::from_secs(600))?,
        })
    }

    async fn props(&self, watch: &dyn Watch) -> Result<Props, Error> {
        let wrong = |reason: String| Error::WrongServer {
            url: self.http.base().to_string(),
            expected: "llama-server",
            reason,
        };
        let request = self.http.request(Method::GET, "props");
        match self.http.json::<Props>("asking what it is", request, self.http.timeout(), watch).await {
            Ok(props) if props.build_info.is_none() => Err(wrong("its props have no build_info".into())),
            Err(Error::Garbage { reason, .. }) => Err(wrong(reason)),
            Err(Error::Refused { refusal: Refusal::NotFound, status, .. }) => {
                Err(wrong(format!("it has no props (status {status})")))
            }
            other => other,
        }
    }

    async fn listed(&self, model: &str, reload: bool, watch: &dyn Watch) -> Result<Option<Listed>, Error> {
        // Only one that routes looks at this.
        let list = api::models(&self.http, if reload { "reload" } else { "" }, watch).await?;
        Ok(list.into_iter().find(|listed| api::is(&listed.id, model)))
    }

    fn found(&self, listed: &Listed, model: &str) -> Result<Found, Error> {
        let bytes = listed.meta.as_ref().and_then(|meta| meta["size"].as_u64());
        let weights = self.handover.weights(model)?;
        Ok(Found { model: self.http.quote(&listed.id), digest: None, weights, bytes })
    }

    /// Has a server that routes load the model, and waits until it is.
    async fn load(&self, model: &str, watch: &dyn Watch) -> Result<(), Error> {
        if self.listed(model, true, watch).await?.is_none() {
            let reason = "the server does not find it: is models-dir the directory that it was started with as --models-dir?";
            return Err(Error::Failed { said: format!("{model}: {reason}") });
        }
        let request = |path: &str| self.http.request(Method::POST, path).json(&json!({ "model": model }));
        // One of the same name that is loaded may be of the file before.
        match self
            .http
            .json::<Value>("unloading the model before", request("models/unload"), self.http.timeout(), watch)
            .await
        {
            Ok(_) => self.reaches(model, watch, |value| value == "unloaded").await?,
            // Not loaded: as it should be.
            Err(Error::Refused { refusal: Refusal::Invalid | Refusal::NotFound, .. }) => {}
            Err(error) => return Err(error),
        }
        let loaded = self
            .http
            .json::<Value>("loading the model", request("models/load"), self.http.timeout(), watch)
            .await;
        match loaded {
            Ok(_) => {}
            // Somebody asked it something meanwhile, which loads it too.
            Err(Error::Refused { refusal: Refusal::Invalid, said, .. }) if said.contains("already") => {}
            Err(Error::Refused { refusal: Refusal::Invalid | Refusal::Fault, said, .. }) => {
                return Err(Error::Failed { said });
            }
            Err(error) => return Err(error),
        }
        self.reaches(model, watch, |value| matches!(value, "loaded" | "sleeping")).await
    }

    async fn reaches(
        &self,
        model: &str,
        watch: &dyn Watch,
        state: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let listed = self.listed(model, false, watch).await?;
            let status = listed.and_then(|listed| listed.status).unwrap_or_default();
            if state(&status.value) {
                return Ok(());
            }
            if status.failed {
                let code = status.exit_code.map_or_else(String::new, |code| format!(" (exit code {code})"));
                let said = format!("its process for {model} ended{code}; its log tells why");
                return Err(Error::Failed { said });
            }
            if begin.elapsed() > self.load_timeout {
                return Err(Error::Hung {
                    doing: format!("waiting for {model} to be loaded"),
                    after: self.load_timeout,
                });
            }
            api::pause(watch).await?;
        }
    }

    /// Waits until a server that was just started lists the model; until its health is good it lists none.
    async fn appears(&self, model: &str, watch: &dyn Watch) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let last = match self.listed(model, false, watch).await {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => Error::NotListed { model: model.into() },
                Err(error) if error.may_pass() => error,
                Err(error) => return Err(error),
            };
            if begin.elapsed() > self.load_timeout {
                return Err(last);
            }
            api::pause(watch).await?;
        }
    }
}

impl Backend for LlamaServer {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            gguf: true,
            safetensors: false,
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
            let props = self.props(watch).await?;
            let models = api::models(&self.http, "", watch).await?;
            let mut notes = Vec::new();
            if props.role.as_deref() == Some("router") {
                if !self.handover.moves_files() {
                    notes.push(
                        "it routes; set --option models-dir=DIR, the directory that it was started with as --models-dir".into(),
                    );
                }
            } else {
                let path = self.http.quote(props.model_path.as_deref().unwrap_or_default());
                notes.push(format!("it serves one model ({path})"));
                if !self.handover.has_start() {
                    notes.push("no start-command is set: somebody must start it anew with another model".into());
                }
            }
            Ok(Condition {
                server: "llama-server".into(),
                version: props.build_info.map(|build| self.http.quote(&build)),
                models: models.iter().map(|listed| self.http.quote(&listed.id)).collect(),
                model_bytes: None,
                loaded_bytes: None,
                free_bytes: None,
                notes,
            })
        }))
    }

    fn find(&self, model: &str, watch: &dyn Watch) -> Result<Option<Found>, Error> {
        let listed = self.http.run(self.http.retrying(watch, || self.listed(model, true, watch)))?;
        listed.map(|listed| self.found(&listed, model)).transpose()
    }

    fn deploy(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
        if !matches!(order.payload, Payload::Gguf(_)) {
            return Err(Error::Unsupported {
                what: "deploying a directory of safetensors files".into(),
                kind: EnvironmentKind::LlamaServer,
                reason: "it takes a GGUF: deploy the model with a quantization".into(),
            });
        }
        watch.step(Step::Uploading)?;
        self.handover.bring(order, watch)?;
        watch.step(Step::Creating)?;
        if self.handover.start(order, watch)? {
            return self.http.run(self.appears(&order.model, watch));
        }
        self.http.run(self.http.retrying(watch, || async {
            if self.props(watch).await?.role.as_deref() == Some("router") {
                return self.load(&order.model, watch).await;
            }
            match self.listed(&order.model, false, watch).await? {
                Some(_) => Ok(()),
                None => Err(Error::NotServed {
                    model: order.model.clone(),
                    path: self.handover.path_there(&order.model, &order.payload),
                }),
            }
        }))
    }

    fn verify(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error> {
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

    fn answers(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error> {
        self.http.run(self.http.retrying(watch, || async {
            let listed = self.listed(model, false, watch).await?;
            let id = listed.map_or_else(|| model.to_string(), |listed| listed.id);
            api::answer(&self.http, &id, self.load_timeout, watch).await
        }))
    }

    fn remove(&self, model: &str, watch: &dyn Watch) -> Result<bool, Error> {
        if !self.handover.removes() {
            return Err(Error::Unsupported {
                what: "removing a model".into(),
                kind: EnvironmentKind::LlamaServer,
                reason: "its API cannot; set --option models-dir=... or stop-command=..., or remove it there"
                    .into(),
            });
        }
        let removed = self.handover.remove(model, watch)?;
        // A server that routes unloads what is no longer there when it looks again.
        match self.http.run(self.http.retrying(watch, || self.listed(model, true, watch))) {
            Ok(_) => Ok(removed),
            // One that the command has ended does not answer.
            Err(Error::Unreachable { .. } | Error::Cut { .. }) if removed => Ok(removed),
            Err(error) => Err(error),
        }
    }
}
