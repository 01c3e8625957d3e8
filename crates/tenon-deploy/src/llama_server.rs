//! The server of llama.cpp.
//!
//! Started without a model it routes: it looks into its `--models-dir`, loads
//! models when it is told to, and runs each in a process of its own. Started with
//! a model it serves that one, and a command of the user's starts it anew. Adapters
//! it takes when a model is started: by its preset file or by that command.
//! Its API: `tools/server/README.md` of llama.cpp.

use std::time::Instant;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::openai::api;
use crate::openai::server::Server;
use crate::preset::Preset;
use crate::{
    Answer, Backend, Capabilities, Condition, Environment, EnvironmentKind, Error, Found, ModelSettings,
    Order, Payload, Refusal, Step, TemplateUse, Verified, Watch,
};

/// A llama-server.
pub(crate) struct LlamaServer {
    server: Server,
    /// Where a server that routes reads what its models are started with.
    preset: Option<Preset>,
}

/// An adapter that a model was started with.
#[derive(Deserialize)]
struct Applied {
    #[serde(default)]
    path: String,
    #[serde(default)]
    scale: f64,
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
        let preset = environment.options.get("models-preset").map(|path| Preset::new(path)).transpose()?;
        Ok(Self { server: Server::new(environment, None)?, preset })
    }

    async fn props(&self, watch: &dyn Watch) -> Result<Props, Error> {
        let wrong = |reason: String| Error::WrongServer {
            url: self.server.http.base().to_string(),
            expected: "llama-server",
            reason,
        };
        let request = self.server.http.request(Method::GET, "props");
        match self
            .server
            .http
            .json::<Props>("asking what it is", request, self.server.http.timeout(), watch)
            .await
        {
            Ok(props) if props.build_info.is_none() => Err(wrong("its props have no build_info".into())),
            Err(Error::Garbage { reason, .. }) => Err(wrong(reason)),
            Err(Error::Refused { refusal: Refusal::NotFound, status, .. }) => {
                Err(wrong(format!("it has no props (status {status})")))
            }
            other => other,
        }
    }

    /// Has a server that routes load the model, and waits until it is.
    async fn load(&self, model: &str, watch: &dyn Watch) -> Result<(), Error> {
        if self.server.listed(model, true, watch).await?.is_none() {
            let reason = "the server does not find it: is models-dir the directory that it was started with as --models-dir?";
            return Err(Error::Failed { said: format!("{model}: {reason}") });
        }
        let request =
            |path: &str| self.server.http.request(Method::POST, path).json(&json!({ "model": model }));
        // One of the same name that is loaded may be of the file before.
        match self
            .server
            .http
            .json::<Value>(
                "unloading the model before",
                request("models/unload"),
                self.server.http.timeout(),
                watch,
            )
            .await
        {
            Ok(_) => self.reaches(model, watch, |value| value == "unloaded").await?,
            // Not loaded: as it should be.
            Err(Error::Refused { refusal: Refusal::Invalid | Refusal::NotFound, .. }) => {}
            Err(error) => return Err(error),
        }
        let loaded = self
            .server
            .http
            .json::<Value>("loading the model", request("models/load"), self.server.http.timeout(), watch)
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

    /// Sees that a model was started with an adapter: without it, it answers as well.
    async fn applies(&self, model: &str, adapter: &str, watch: &dyn Watch) -> Result<(), Error> {
        let request = self.server.http.request(Method::GET, "lora-adapters").query(&[("model", model)]);
        let limit = self.server.http.timeout();
        let applied: Vec<Applied> =
            self.server.http.json("asking for its adapters", request, limit, watch).await?;
        if applied.iter().any(|applied| applied.path == adapter && applied.scale == 1.0) {
            return Ok(());
        }
        let found: Vec<_> = applied.iter().map(|a| format!("{} by {}", a.path, a.scale)).collect();
        Err(Error::Differs {
            model: model.into(),
            what: "the adapter that it applies",
            expected: format!(
                "{adapter} by 1 (is models-preset the file that the server was started with as --models-preset?)"
            ),
            found: if found.is_empty() { "none".into() } else { self.server.http.quote(&found.join(", ")) },
        })
    }

    async fn reaches(
        &self,
        model: &str,
        watch: &dyn Watch,
        state: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let begin = Instant::now();
        loop {
            let listed = self.server.listed(model, false, watch).await?;
            let status = listed.and_then(|listed| listed.status).unwrap_or_default();
            if state(&status.value) {
                return Ok(());
            }
            if status.failed {
                let code = status.exit_code.map_or_else(String::new, |code| format!(" (exit code {code})"));
                let said = format!("its process for {model} ended{code}; its log tells why");
                return Err(Error::Failed { said });
            }
            if begin.elapsed() > self.server.load_timeout {
                return Err(Error::Hung {
                    doing: format!("waiting for {model} to be loaded"),
                    after: self.server.load_timeout,
                });
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
            adapters: self.preset.is_some() || self.server.handover.has_adapter_command(),
            quantizes: false,
            template: TemplateUse::Ignored,
            removes: self.server.handover.removes(),
        }
    }

    fn model_name(&self, wanted: &str, exact: bool) -> Result<String, Error> {
        api::model_name(wanted, exact)
    }

    fn check(&self, _: Option<&ModelSettings>, watch: &dyn Watch) -> Result<Condition, Error> {
        self.server.http.run(self.server.http.retrying(watch, || async {
            let props = match self.props(watch).await {
                Ok(props) => props,
                Err(error) => return self.server.to_be_started("llama-server", error),
            };
            let models = self.server.list(false, watch).await?;
            let mut notes = Vec::new();
            if props.role.as_deref() == Some("router") {
                if !self.server.handover.moves_files() {
                    notes.push(
                        "it routes; set --option models-dir=DIR, the directory that it was started with as --models-dir".into(),
                    );
                }
            } else {
                let path = self.server.http.quote(props.model_path.as_deref().unwrap_or_default());
                notes.push(format!("it serves one model ({path})"));
                if !self.server.handover.has_start() {
                    notes.push("no start-command is set: somebody must start it anew with another model".into());
                }
            }
            Ok(Condition {
                server: "llama-server".into(),
                version: props.build_info.map(|build| self.server.http.quote(&build)),
                models: models.iter().map(|listed| self.server.http.quote(&listed.id)).collect(),
                free_bytes: self.server.handover.free_bytes(),
                notes,
                ..Condition::default()
            })
        }))
    }

    fn find(&self, model: &str, watch: &dyn Watch) -> Result<Option<Found>, Error> {
        let listed = self
            .server
            .http
            .run(self.server.http.retrying(watch, || self.server.listed(model, true, watch)))?;
        listed.map(|listed| self.server.found(&listed, model)).transpose()
    }

    fn deploy(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
        if matches!(order.payload, Payload::Directory { .. }) {
            return Err(Error::Unsupported {
                what: "deploying a directory of safetensors files".into(),
                kind: EnvironmentKind::LlamaServer,
                reason: "it takes a GGUF: deploy the model with a quantization".into(),
            });
        }
        watch.step(Step::Uploading)?;
        self.server.handover.bring(order, watch)?;
        watch.step(Step::Creating)?;
        if self.server.handover.start(order, watch)? {
            return self.server.http.run(self.server.appears(&order.model, watch));
        }
        if let Some(preset) = &self.preset {
            let path = self.server.handover.path_there(&order.model, &order.payload);
            match self.server.handover.adapter_there(&order.model, &order.payload) {
                Some(adapter) => preset.set(&order.model, &[("model", &path), ("lora", &adapter)])?,
                // Of an adapter that had the name.
                None => preset.remove(&order.model)?,
            }
        }
        self.server.http.run(self.server.http.retrying(watch, || async {
            if self.props(watch).await?.role.as_deref() == Some("router") {
                return self.load(&order.model, watch).await;
            }
            match self.server.listed(&order.model, false, watch).await? {
                Some(_) => Ok(()),
                None => Err(Error::NotServed {
                    model: order.model.clone(),
                    path: self.server.handover.path_there(&order.model, &order.payload),
                }),
            }
        }))
    }

    fn verify(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error> {
        let verified = self.server.verify(order, watch)?;
        if let Some(adapter) = self.server.handover.adapter_there(&order.model, &order.payload) {
            self.server
                .http
                .run(self.server.http.retrying(watch, || self.applies(&order.model, &adapter, watch)))?;
        }
        Ok(verified)
    }

    fn answers(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error> {
        self.server.answers(model, watch)
    }

    fn remove(&self, model: &str, watch: &dyn Watch) -> Result<bool, Error> {
        if !self.server.handover.removes() {
            return Err(Error::Unsupported {
                what: "removing a model".into(),
                kind: EnvironmentKind::LlamaServer,
                reason: "its API cannot; set --option models-dir=... or stop-command=..., or remove it there"
                    .into(),
            });
        }
        let removed = self.server.handover.remove(model, watch)?;
        if let Some(preset) = &self.preset {
            preset.remove(model)?;
        }
        // A server that routes unloads what is no longer there when it looks again.
        match self
            .server
            .http
            .run(self.server.http.retrying(watch, || self.server.listed(model, true, watch)))
        {
            Ok(_) => Ok(removed),
            // One that the command has ended does not answer.
            Err(Error::Unreachable { .. } | Error::Cut { .. }) if removed => Ok(removed),
            Err(error) => Err(error),
        }
    }

    fn stays(&self, model: &str, sent: u64) -> Option<String> {
        self.server.stays(model, sent)
    }
}
