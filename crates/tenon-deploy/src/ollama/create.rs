//! `/api/create`: a model made of files in Ollama's store, told of in a stream of objects.

use std::collections::HashMap;
use std::time::Duration;

use ollama_rs::generation::chat::{ChatMessage, MessageRole};
use ollama_rs::models::ModelOptions;
use ollama_rs::models::create::{CreateModelRequest, QuantizationType};
use reqwest::Method;
use serde::Serialize;
use serde_json::Value;
use tenon_checkpoint::Digest;

use crate::http::{Http, Objects, Silence};
use crate::{EnvironmentKind, Error, ModelSettings, Order, Payload, SourceFile, Watch};

/// The crate's request, and what Ollama takes besides.
#[derive(Serialize)]
struct Create<'a> {
    #[serde(flatten)]
    request: CreateModelRequest,
    #[serde(skip_serializing_if = "Option::is_none")]
    renderer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parser: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requires: Option<&'a str>,
}

/// Makes the model, or what is there again with the same name. Gives the digests of the layers it has.
pub(super) async fn create(
    http: &Http,
    order: &Order,
    limit: Duration,
    watch: &dyn Watch,
) -> Result<Vec<Digest>, Error> {
    let doing = "making the model";
    let silence = Silence::begin();
    let request = http.request(Method::POST, "api/create").json(&request(order)?);
    let mut response = http.send(doing, request, limit, &silence, watch).await?;
    let mut progress = Progress { http, watch, done: false, said: String::new(), layers: vec![] };
    let mut objects = Objects::default();
    let garbage = |reason: String| Error::Garbage { doing: doing.into(), reason: http.quote(&reason) };
    while let Some(piece) = http.chunk(doing, &mut response, limit, &silence, watch).await? {
        for object in objects.push(&piece).map_err(garbage)? {
            progress.hear(&object)?;
        }
    }
    for object in objects.finish() {
        progress.hear(&object)?;
    }
    if progress.done {
        Ok(progress.layers)
    } else {
        let last = if progress.said.is_empty() { "nothing".into() } else { format!("{:?}", progress.said) };
        Err(Error::Cut {
            doing: doing.into(),
            reason: format!("no word of success; the last that it said was {last}"),
        })
    }
}

/// What the stream has told so far.
struct Progress<'a> {
    http: &'a Http,
    watch: &'a dyn Watch,
    done: bool,
    said: String,
    layers: Vec<Digest>,
}

impl Progress<'_> {
    fn hear(&mut self, object: &Value) -> Result<(), Error> {
        // Wherever it comes, after "success" too.
        match &object["error"] {
            Value::Null => {}
            Value::String(said) => return Err(Error::Failed { said: self.http.quote(said) }),
            other => return Err(Error::Failed { said: self.http.quote(&other.to_string()) }),
        }
        if let Some(status) = object["status"].as_str() {
            self.done = status == "success";
            let layer =
                status.split_once(" layer sha256:").and_then(|(_, digest)| digest.parse::<Digest>().ok());
            self.layers.extend(layer);
            let status = self.http.quote(status);
            if status != self.said {
                self.watch.said(&status);
                self.said = status;
            }
        }
        Ok(())
    }
}

fn request(order: &Order) -> Result<Create<'_>, Error> {
    let settings = &order.settings;
    let named = |files: &[SourceFile]| -> HashMap<_, _> {
        files.iter().map(|file| (file.name.clone(), format!("sha256:{}", file.sha256))).collect()
    };
    let (files, base) = (order.payload.files(), order.payload.base());
    let mut request = CreateModelRequest::new(order.model.clone());
    request = match order.payload {
        Payload::Adapter { .. } => request.files(named(base)).adapters(named(files)),
        Payload::Gguf(_) | Payload::Directory { .. } => request.files(named(files)),
    };
    request.stream = true;
    request.template = settings.template.clone();
    request.system = settings.system.clone();
    request.license = (!settings.licenses.is_empty()).then(|| settings.licenses.clone());
    request.parameters = (!settings.parameters.is_empty())
        .then(|| ModelOptions::default().extras(settings.parameters.clone()));
    request.messages = messages(settings)?;
    request.quantize = order.quantize.as_deref().map(quantization).transpose()?;
    Ok(Create {
        request,
        renderer: settings.renderer.as_deref(),
        parser: settings.parser.as_deref(),
        requires: settings.requires.as_deref(),
    })
}

fn messages(settings: &ModelSettings) -> Result<Option<Vec<ChatMessage>>, Error> {
    let messages: Result<Vec<_>, _> = settings
        .messages
        .iter()
        .map(|message| {
            let role = match message.role.as_str() {
                "system" => MessageRole::System,
                "user" => MessageRole::User,
                "assistant" => MessageRole::Assistant,
                other => {
                    return Err(Error::Unsupported {
                        what: format!("a message of {other:?}"),
                        kind: EnvironmentKind::Ollama,
                        reason: "messages are of system, user or assistant".into(),
                    });
                }
            };
            Ok(ChatMessage::new(role, message.content.clone()))
        })
        .collect();
    Ok(Some(messages?).filter(|messages| !messages.is_empty()))
}

fn quantization(name: &str) -> Result<QuantizationType, Error> {
    Ok(match name {
        "q8_0" => QuantizationType::Q80,
        "q4_K_M" => QuantizationType::Q4KM,
        "q4_K_S" => QuantizationType::Q4KS,
        other => {
            return Err(Error::Unsupported {
                what: format!("quantizing to {other:?}"),
                kind: EnvironmentKind::Ollama,
                reason: "it is asked for q8_0, q4_K_M or q4_K_S".into(),
            });
        }
    })
}
