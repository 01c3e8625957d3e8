//! vLLM, SGLang, TGI and other servers with OpenAI's API.
//!
//! Over that API models are listed and asked, and nothing else: the directory is
//! handed over where the server reads it, a command of the user's has it served.

pub(crate) mod api;
pub(crate) mod server;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use self::api::Listed;
use self::server::Server;
use crate::http::Silence;
use crate::{
    Answer, Backend, Capabilities, Condition, Environment, EnvironmentKind, Error, Found, ModelSettings,
    Order, Payload, Refusal, Step, TemplateUse, Verified, Watch,
};

/// A server with OpenAI's API.
pub(crate) struct OpenAi {
    server: Server,
    kind: EnvironmentKind,
}

/// What vLLM (`/version`), TGI (`/info`) and SGLang (`/server_info`) say of themselves.
#[derive(Default, Deserialize)]
#[serde(default)]
struct About {
    version: Option<String>,
}

impl OpenAi {
    pub(crate) fn new(environment: &Environment) -> Result<Self, Error> {
        let kind = environment.kind;
        let expected = if kind == EnvironmentKind::Vllm { "vLLM" } else { "OpenAI-compatible" };
        Ok(Self { server: Server::new(environment, Some(expected))?, kind })
    }

    async fn version(&self, watch: &dyn Watch) -> Result<Option<String>, Error> {
        for path in ["version", "info", "server_info"] {
            let request = self.server.http.request(Method::GET, path);
            match self
                .server
                .http
                .json::<About>("asking its version", request, self.server.http.timeout(), watch)
                .await
            {
                Ok(About { version: Some(version) }) => return Ok(Some(self.server.http.quote(&version))),
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

    /// Has vLLM load an adapter from its directory, in the place of one of the same name.
    /// Its API: <https://docs.vllm.ai/en/latest/features/lora.html>.
    async fn load_adapter(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
        let model = &order.model;
        let list = self.server.list(false, watch).await?;
        if list.iter().any(|listed| listed.id == *model && listed.parent.is_none()) {
            let reason = "a model of the server's has that name".into();
            return Err(Error::BadModelName { name: model.clone(), reason });
        }
        if list.iter().any(|listed| listed.id == *model) {
            self.unload_adapter(model, watch).await?;
        }
        let path = self.server.handover.path_there(model, &order.payload);
        let body = json!({ "lora_name": model, "lora_path": path });
        self.adapter_call("loading the adapter", "load_lora_adapter", &body, watch).await
    }

    async fn unload_adapter(&self, model: &str, watch: &dyn Watch) -> Result<(), Error> {
        let body = json!({ "lora_name": model });
        self.adapter_call("unloading the adapter", "unload_lora_adapter", &body, watch).await
    }

    async fn adapter_call(
        &self,
        doing: &str,
        path: &str,
        body: &Value,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        let http = &self.server.http;
        let request = http.request(Method::POST, &api::path(http, path)).json(body);
        // It answers when the adapter is in its memory.
        let (limit, silence) = (self.server.load_timeout, Silence::begin());
        match http.send(doing, request, limit, &silence, watch).await {
            Ok(_) => Ok(()),
            // There is no such path where that is not allowed.
            Err(Error::Refused { refusal: Refusal::NotFound, said, .. })
                if said.eq_ignore_ascii_case("not found") =>
            {
                Err(Error::Unsupported {
                    what: doing.into(),
                    kind: self.kind,
                    reason: "start vLLM with --enable-lora, and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
                        .into(),
                })
            }
            Err(Error::Refused {
                refusal: Refusal::Invalid | Refusal::NotFound | Refusal::Fault,
                said,
                ..
            }) => Err(Error::Failed { said }),
            Err(error) => Err(error),
        }
    }
}

impl Backend for OpenAi {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            gguf: false,
            safetensors: true,
            adapters: self.kind == EnvironmentKind::Vllm,
            quantizes: false,
            template: TemplateUse::Ignored,
            removes: self.server.handover.removes(),
        }
    }

    fn model_name(&self, wanted: &str, exact: bool) -> Result<String, Error> {
        api::model_name(wanted, exact)
    }

    fn check(&self, _: Option<&ModelSettings>, watch: &dyn Watch) -> Result<Condition, Error> {
        let http = &self.server.http;
        let server =
            if self.kind == EnvironmentKind::Vllm { "vLLM" } else { "OpenAI-compatible server" }.to_string();
        http.run(http.retrying(watch, || async {
            let models = match self.server.list(false, watch).await {
                Ok(models) => models,
                Err(error) => return self.server.to_be_started(&server, error),
            };
            let mut notes = Vec::new();
            if !self.server.handover.has_start() {
                notes.push(
                    "no start-command is set: the server must be started with the model by other means, and is then verified".into(),
                );
            }
            if !self.server.handover.moves_files() {
                notes.push("neither models-dir nor copy-command is set: the server must see the model where it lies here".into());
            }
            Ok(Condition {
                server: server.clone(),
                version: self.version(watch).await?,
                models: models.iter().map(|listed| http.quote(&listed.id)).collect(),
                free_bytes: self.server.handover.free_bytes(),
                notes,
                ..Condition::default()
            })
        }))
    }

    fn find(&self, model: &str, watch: &dyn Watch) -> Result<Option<Found>, Error> {
        let http = &self.server.http;
        let listed = http.run(http.retrying(watch, || self.server.listed(model, false, watch)))?;
        listed.map(|listed| self.server.found(&listed, model)).transpose()
    }

    fn deploy(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
        if matches!(order.payload, Payload::Gguf(_)) {
            return Err(Error::Unsupported {
                what: "deploying a GGUF".into(),
                kind: self.kind,
                reason: "it takes the model's directory: deploy it with no_quantization".into(),
            });
        }
        watch.step(Step::Uploading)?;
        self.server.handover.bring(order, watch)?;
        watch.step(Step::Creating)?;
        let http = &self.server.http;
        if matches!(order.payload, Payload::Adapter { .. }) {
            return http.run(http.retrying(watch, || self.load_adapter(order, watch)));
        }
        let started = self.server.handover.start(order, watch)?;
        http.run(async {
            if started {
                return self.server.appears(&order.model, watch).await;
            }
            match http.retrying(watch, || self.server.listed(&order.model, false, watch)).await? {
                Some(_) => Ok(()),
                None => Err(Error::NotServed {
                    model: order.model.clone(),
                    path: self.server.handover.path_there(&order.model, &order.payload),
                }),
            }
        })
    }

    fn verify(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error> {
        self.server.verify(order, watch)
    }

    fn answers(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error> {
        self.server.answers(model, watch)
    }

    fn remove(&self, model: &str, watch: &dyn Watch) -> Result<bool, Error> {
        let http = &self.server.http;
        if self.kind == EnvironmentKind::Vllm {
            let is_adapter = |listed: &Listed| listed.id == model && listed.parent.is_some();
            // One that is down has no adapter loaded.
            let list = http.run(self.server.list(false, watch)).unwrap_or_default();
            if list.iter().any(is_adapter) {
                http.run(http.retrying(watch, || self.unload_adapter(model, watch)))?;
                self.server.handover.take_away(model)?;
                return Ok(true);
            }
        }
        if !self.server.handover.removes() {
            return Err(Error::Unsupported {
                what: "removing a model".into(),
                kind: self.kind,
                reason: "its API cannot; set --option stop-command=..., or end it there".into(),
            });
        }
        self.server.handover.remove(model, watch)
    }

    fn stays(&self, model: &str, sent: u64) -> Option<String> {
        self.server.stays(model, sent)
    }
}
