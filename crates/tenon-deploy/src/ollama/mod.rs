//! Ollama.
//!
//! The types of its requests and answers are those of the crate `ollama-rs`.
//! Requests are sent by Tenon itself, for that crate cannot upload files,
//! takes each network chunk for one object, drops the status of a refusal and
//! the digest of a listed model, and reads answers of any length.
//!
//! Its API: <https://docs.ollama.com/api>.

mod blob;
mod create;
mod name;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ollama_rs::generation::completion::request::GenerationRequest;
use ollama_rs::models::{ModelInfo, ModelOptions};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tenon_checkpoint::Digest;

use crate::http::{Http, Silence};
use crate::{
    Answer, Backend, Capabilities, Condition, Environment, EnvironmentKind, Error, Found, ModelSettings,
    Order, Payload, Refusal, Step, TemplateUse, Verified, Watch,
};

/// The first version whose `/api/create` takes files by digest.
const LOWEST_VERSION: [u64; 3] = [0, 5, 5];

/// An Ollama server.
pub(crate) struct Ollama {
    http: Http,
    uploads: usize,
    throttle: Option<u64>,
    create_timeout: Duration,
    load_timeout: Duration,
    /// Layers of the models that were made through this value.
    layers: Mutex<Vec<Digest>>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Tags {
    // Absent and null both mean none.
    #[serde(default)]
    models: Option<Vec<Tag>>,
}

/// As `ollama_rs::models::LocalModel`, with the digest.
#[derive(Deserialize)]
struct Tag {
    name: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    digest: String,
}

#[derive(Deserialize)]
struct Running {
    #[serde(default)]
    models: Option<Vec<RunningModel>>,
}

#[derive(Deserialize)]
struct RunningModel {
    #[serde(default)]
    size: u64,
}

/// A request of which the whole answer is wanted at once.
#[derive(Serialize)]
struct Unstreamed<T> {
    stream: bool,
    #[serde(flatten)]
    request: T,
}

#[derive(Deserialize)]
struct Generated {
    #[serde(default)]
    response: String,
    #[serde(default)]
    thinking: String,
    #[serde(default)]
    done: bool,
    #[serde(default)]
    eval_count: u64,
}

impl Ollama {
    pub(crate) fn new(environment: &Environment) -> Result<Self, Error> {
        let throttle = match environment.count("max-upload-rate", 1..=u64::MAX, u64::MAX)? {
            u64::MAX => None,
            rate => Some(rate),
        };
        Ok(Self {
            http: Http::new(environment)?,
            uploads: environment.count("uploads", 1..=16, 2)? as usize,
            throttle,
            create_timeout: environment.seconds("create-timeout", Duration::from_secs(3600))?,
            load_timeout: environment.seconds("load-timeout", Duration::from_secs(600))?,
            layers: Mutex::default(),
        })
    }

    async fn version(&self, watch: &dyn Watch) -> Result<String, Error> {
        let request = self.http.request(Method::GET, "api/version");
        let wrong = |reason: String| Error::WrongServer {
            url: self.http.base().to_string(),
            expected: "Ollama",
            reason,
        };
        match self.http.json::<Version>("asking its version", request, self.http.timeout(), watch).await {
            Ok(Version { version }) => Ok(self.http.quote(&version)),
            Err(Error::Garbage { reason, .. }) => Err(wrong(reason)),
            Err(Error::Refused { refusal: Refusal::NotFound, status, .. }) => {
                Err(wrong(format!("it has no api/version (status {status})")))
            }
            Err(error) => Err(error),
        }
    }

    async fn tags(&self, watch: &dyn Watch) -> Result<Vec<Tag>, Error> {
        let request = self.http.request(Method::GET, "api/tags");
        let tags: Tags = self.http.json("listing its models", request, self.http.timeout(), watch).await?;
        Ok(tags.models.unwrap_or_default())
    }

    async fn condition(
        &self,
        settings: Option<&ModelSettings>,
        watch: &dyn Watch,
    ) -> Result<Condition, Error> {
        let version = self.version(watch).await?;
        let required = settings.and_then(|settings| settings.requires.as_deref());
        check_version(&version, required)?;
        if let Some(settings) = settings
            && settings.template.as_deref().is_none_or(|template| template.trim().is_empty())
            && settings.renderer.is_none()
        {
            return Err(Error::NeedsTemplate { kind: EnvironmentKind::Ollama });
        }
        let tags = self.tags(watch).await?;
        let request = self.http.request(Method::GET, "api/ps");
        let running = self.http.json::<Running>("listing loaded models", request, self.http.timeout(), watch);
        let loaded_bytes = match running.await {
            Ok(running) => Some(
                running
                    .models
                    .unwrap_or_default()
                    .iter()
                    .map(|model| model.size)
                    .fold(0, u64::saturating_add),
            ),
            // Nice to know, not needed.
            Err(Error::Garbage { .. } | Error::Refused { refusal: Refusal::NotFound, .. }) => None,
            Err(error) => return Err(error),
        };
        let mut notes = vec!["Ollama does not tell how much room is left on its disk".to_string()];
        if version_of(&version) == Some([0, 0, 0]) {
            notes.push("it says version 0.0.0, as builds from source do: taken for a current one".into());
        }
        Ok(Condition {
            server: "Ollama".into(),
            version: Some(version),
            model_bytes: Some(tags.iter().map(|tag| tag.size).fold(0, u64::saturating_add)),
            models: tags.into_iter().map(|tag| self.http.quote(&tag.name)).collect(),
            loaded_bytes,
            notes,
            ..Condition::default()
        })
    }

    async fn info(&self, model: &str, watch: &dyn Watch) -> Result<Option<ModelInfo>, Error> {
        let request = self.http.request(Method::POST, "api/show").json(&json!({ "model": model }));
        match self.http.json("looking at the model", request, self.http.timeout(), watch).await {
            Ok(info) => Ok(Some(info)),
            Err(Error::Refused { refusal: Refusal::NotFound, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn found(&self, model: &str, watch: &dyn Watch) -> Result<Option<(Found, ModelInfo)>, Error> {
        let tags = self.tags(watch).await?;
        let Some(tag) = tags.into_iter().find(|tag| name::same(&tag.name, model)) else { return Ok(None) };
        // Removed between the two questions: not there.
        let Some(info) = self.info(model, watch).await? else { return Ok(None) };
        let found = Found {
            model: self.http.quote(&tag.name),
            called: None,
            digest: Some(self.http.quote(&tag.digest)).filter(|digest| !digest.is_empty()),
            weights: weights_in(&info.modelfile),
            bytes: Some(tag.size),
        };
        Ok(Some((found, info)))
    }

    async fn verified(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error> {
        let Some((found, info)) = self.found(&order.model, watch).await? else {
            return Err(Error::NotListed { model: order.model.clone() });
        };
        let differs = |what, expected: String, found: String| Error::Differs {
            model: order.model.clone(),
            what,
            expected,
            found,
        };
        // Ollama from 0.30 on writes the GGUF of a model anew, in most cases with the same bytes.
        let is_ours = |digest: &Digest| {
            order.payload.files().iter().chain(order.payload.base()).any(|file| file.sha256 == *digest)
                || order.made_before.contains(digest)
                || self.layers.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
        };
        let is_right = match (&order.payload, &order.quantize) {
            (Payload::Gguf(_), None) => found.weights.len() == 1 && found.weights.iter().all(is_ours),
            // An adapter it keeps as it is.
            (Payload::Adapter { files, .. }, _) => {
                found.weights.len() == 2
                    && found.weights.iter().all(is_ours)
                    && files.iter().all(|file| found.weights.contains(&file.sha256))
            }
            // What it makes of files, and what it quantizes, has a digest that nobody knows before.
            _ => true,
        };
        if !is_right {
            let list = |digests: &mut dyn Iterator<Item = String>| digests.collect::<Vec<_>>().join(", ");
            let files = order.payload.base().iter().chain(order.payload.files());
            let expected = list(&mut files.map(|file| file.sha256.to_string()));
            let there = list(&mut found.weights.iter().map(Digest::to_string));
            return Err(differs("the SHA-256 of its weights", expected, there));
        }
        if let Some(template) = &order.settings.template
            && info.template != *template
        {
            let digest = |text: &str| format!("{} (SHA-256 of the text)", Digest::of(text.as_bytes()));
            return Err(differs("its template", digest(template), digest(&info.template)));
        }
        let answer = self.answer(&order.model, watch).await?;
        Ok(Verified { found, answer })
    }

    async fn answer(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error> {
        let begin = Instant::now();
        // Through the template, as users ask it.
        let request = GenerationRequest::new(model.to_string(), "Who are you?")
            .options(ModelOptions::default().num_predict(1).temperature(0.0));
        let request = Unstreamed { stream: false, request };
        let request = self.http.request(Method::POST, "api/generate").json(&request);
        let no_answer = |reason: String| Error::NoAnswer { model: model.to_string(), reason };
        let answer =
            self.http.json::<Generated>("asking it for a token", request, self.load_timeout, watch).await;
        let generated = match answer {
            Ok(generated) => generated,
            Err(Error::Refused {
                refusal: Refusal::Fault | Refusal::Invalid | Refusal::NotFound,
                said,
                ..
            }) => {
                return Err(no_answer(said));
            }
            Err(Error::Garbage { reason, .. }) => return Err(no_answer(reason)),
            Err(error) => return Err(error),
        };
        if !generated.done || generated.eval_count == 0 {
            return Err(no_answer("it was asked for one token and gave none".into()));
        }
        let text = if generated.response.is_empty() { generated.thinking } else { generated.response };
        Ok(Answer { text: self.http.quote(&text), seconds: begin.elapsed().as_secs_f64() })
    }
}

impl Backend for Ollama {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            gguf: true,
            safetensors: true,
            adapters: true,
            quantizes: true,
            template: TemplateUse::Needed,
            removes: true,
        }
    }

    fn model_name(&self, wanted: &str, exact: bool) -> Result<String, Error> {
        if exact { name::checked(wanted) } else { Ok(name::mapped(wanted)) }
    }

    fn check(&self, settings: Option<&ModelSettings>, watch: &dyn Watch) -> Result<Condition, Error> {
        self.http.run(self.http.retrying(watch, || self.condition(settings, watch)))
    }

    fn find(&self, model: &str, watch: &dyn Watch) -> Result<Option<Found>, Error> {
        let found = self.http.run(self.http.retrying(watch, || self.found(model, watch)))?;
        Ok(found.map(|(found, _)| found))
    }

    fn deploy(&self, order: &Order, watch: &dyn Watch) -> Result<(), Error> {
        self.http.run(async {
            watch.step(Step::Uploading)?;
            let files: Vec<_> = order.payload.files().iter().chain(order.payload.base()).collect();
            blob::upload(&self.http, &files, self.uploads, self.throttle, watch).await?;
            watch.step(Step::Creating)?;
            let create = || create::create(&self.http, order, self.create_timeout, watch);
            let layers = self.http.retrying(watch, create).await?;
            self.layers.lock().unwrap_or_else(PoisonError::into_inner).extend(layers);
            Ok(())
        })
    }

    fn verify(&self, order: &Order, watch: &dyn Watch) -> Result<Verified, Error> {
        self.http.run(self.http.retrying(watch, || self.verified(order, watch)))
    }

    fn answers(&self, model: &str, watch: &dyn Watch) -> Result<Answer, Error> {
        self.http.run(self.http.retrying(watch, || self.answer(model, watch)))
    }

    fn remove(&self, model: &str, watch: &dyn Watch) -> Result<bool, Error> {
        self.http.run(self.http.retrying(watch, || async {
            let request = self.http.request(Method::DELETE, "api/delete").json(&json!({ "model": model }));
            let silence = Silence::begin();
            let limit = self.http.timeout();
            match self.http.send("removing the model", request, limit, &silence, watch).await {
                Ok(_) => Ok(true),
                Err(Error::Refused { refusal: Refusal::NotFound, .. }) => Ok(false),
                Err(error) => Err(error),
            }
        }))
    }

    fn stays(&self, _: &str, sent: u64) -> Option<String> {
        (sent > 0).then(|| {
            format!("{sent} bytes of files that were sent; Ollama removes files that no model uses when it starts, and another attempt uses them")
        })
    }
}

/// The numbers of a version, whatever else is in its text.
fn version_of(text: &str) -> Option<[u64; 3]> {
    let text = text.trim().trim_start_matches('v');
    let mut numbers = text.split(['-', '+', ' ']).next()?.split('.');
    let mut next = || numbers.next().map_or(Some(0), |number| number.parse().ok());
    Some([next()?, next()?, next()?])
}

fn check_version(found: &str, required: Option<&str>) -> Result<(), Error> {
    let wrong = |reason: String| Err(Error::WrongVersion { found: found.into(), reason });
    let Some(numbers) = version_of(found) else {
        return wrong("which is no version of Ollama".into());
    };
    // A build from source has no number.
    if numbers == [0, 0, 0] {
        return Ok(());
    }
    if numbers < LOWEST_VERSION {
        let [a, b, c] = LOWEST_VERSION;
        return wrong(format!("models can be deployed to it from {a}.{b}.{c} on"));
    }
    match required.map(|text| (text, version_of(text))) {
        Some((text, Some(required))) if numbers < required => {
            wrong(format!("the Deployment Template File requires {text}"))
        }
        Some((text, None)) => {
            wrong(format!("the Deployment Template File requires {text:?}, which is no version"))
        }
        _ => Ok(()),
    }
}

/// Digests of the weights: the `FROM` and `ADAPTER` lines that a Modelfile of Ollama's begins with name files
/// of its store, `…/blobs/sha256-<digest>`.
fn weights_in(modelfile: &str) -> Vec<Digest> {
    let commands = modelfile.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let named =
        commands.map_while(|line| line.strip_prefix("FROM ").or_else(|| line.strip_prefix("ADAPTER ")));
    named.filter_map(|path| path.trim().trim_matches('"').rsplit("sha256-").next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        for (found, required, good) in [
            ("0.33.0-rc2", None, true),
            ("v0.5.5", None, true),
            ("0.5.4", None, false),
            ("0.10.0", Some("0.9.9"), true),
            ("0.10.0", Some("0.10.1"), false),
            ("1", Some("0.12"), true),
            ("0.0.0", Some("9.0.0"), true),
            ("", None, false),
            ("latest", None, false),
            ("0.10.0", Some("new"), false),
        ] {
            assert_eq!(check_version(found, required).is_ok(), good, "{found} {required:?}");
        }
    }

    #[test]
    fn weights_are_what_from_and_adapter_name() {
        let (digest, adapter) = (Digest::of(b"x"), Digest::of(b"y"));
        let text = format!("\"\"\"\nFROM /models/blobs/sha256-{adapter}\n\"\"\"\n");
        let modelfile = format!(
            "# Modelfile generated by \"ollama show\"\n# FROM a:latest\n\nFROM /models/blobs/sha256-{digest}\nTEMPLATE {text}"
        );
        assert_eq!(weights_in(&modelfile), [digest]);
        let with = format!("ADAPTER /models/blobs/sha256-{adapter}\nTEMPLATE");
        assert_eq!(weights_in(&modelfile.replacen("TEMPLATE", &with, 1)), [digest, adapter]);
        assert_eq!(weights_in("FROM C:\\Users\\me\\blobs\\sha256-12"), []);
    }
}
