//! What Ollama answers, without a model being run.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use tenon_checkpoint::Digest;

use crate::State;
use crate::exchange::{Answer, Request};

/// The version it says it has.
const VERSION: &str = "0.33.0";

/// A model it made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Model {
    /// Its name, with a tag.
    pub name: String,
    /// SHA-256 of its manifest.
    pub digest: String,
    /// Bytes of its files.
    pub size: u64,
    /// The request that made it.
    pub request: Value,
    /// SHA-256 of its weights.
    pub weights: String,
}

#[derive(Default)]
pub(crate) struct Store {
    /// Sizes by `sha256:<digest>`.
    blobs: BTreeMap<String, u64>,
    /// By name in lower case.
    models: BTreeMap<String, Model>,
}

impl Store {
    pub(crate) fn models(&self) -> Vec<Model> {
        self.models.values().cloned().collect()
    }

    pub(crate) fn tamper(&mut self, name: &str) {
        if let Some(model) = self.models.get_mut(&whole(name).to_lowercase()) {
            model.weights = Digest::of(b"somebody else's").to_string();
            model.digest = Digest::of(model.weights.as_bytes()).to_string();
        }
    }
}

pub(crate) fn answer(request: &Request, body: &[u8], state: &mut State) -> Answer {
    let version = state.version.clone().unwrap_or_else(|| VERSION.into());
    let store = &mut state.ollama;
    let object: Value = serde_json::from_slice(body).unwrap_or_default();
    // Old clients say `name`.
    let named = || whole(object["model"].as_str().or(object["name"].as_str()).unwrap_or_default());
    let asked = || object["model"].as_str().unwrap_or_default();
    let not_found = || Answer::error(404, &format!("model '{}' not found", asked()));
    let path = request.path.as_str();
    match (request.method.as_str(), path) {
        ("GET", "/") => Answer {
            status: 200,
            kind: "text/plain; charset=utf-8",
            pieces: vec![b"Ollama is running".to_vec()],
            is_stream: false,
        },
        ("GET", "/api/version") => Answer::json(200, &json!({ "version": version })),
        ("GET", "/api/ps") => Answer::json(200, &json!({ "models": [] })),
        ("GET", "/api/tags") => {
            let models: Vec<Value> = store
                .models
                .values()
                .map(|model| {
                    json!({
                        "name": model.name, "model": model.name, "modified_at": "2026-01-01T00:00:00Z",
                        "size": model.size, "digest": model.digest,
                        "details": { "parent_model": "", "format": "gguf", "family": "llama" },
                    })
                })
                .collect();
            Answer::json(200, &json!({ "models": models }))
        }
        ("POST", "/api/show") => match store.models.get(&named().to_lowercase()) {
            Some(model) => Answer::json(200, &shown(model)),
            None => Answer::error(404, &format!("model '{}' not found", named())),
        },
        ("DELETE", "/api/delete") => match store.models.remove(&named().to_lowercase()) {
            Some(_) => Answer::empty(200),
            None => not_found(),
        },
        ("POST", "/api/generate" | "/api/chat") => {
            if !store.models.contains_key(&named().to_lowercase()) {
                return not_found();
            }
            let mut answer = json!({
                "model": named(), "created_at": "2026-01-01T00:00:00Z", "done": true, "done_reason": "length",
                "total_duration": 1, "load_duration": 1, "prompt_eval_count": 1, "prompt_eval_duration": 1,
                "eval_count": 1, "eval_duration": 1,
            });
            if path == "/api/chat" {
                answer["message"] = json!({ "role": "assistant", "content": "I" });
            } else {
                answer["response"] = "I".into();
            }
            Answer::json(200, &answer)
        }
        ("POST", "/api/create") => create(&object, store),
        (method, path) => match path.strip_prefix("/api/blobs/") {
            Some(digest) => blob(method, digest, body, store),
            None => Answer {
                status: 404,
                kind: "text/plain",
                pieces: vec![b"404 page not found".to_vec()],
                is_stream: false,
            },
        },
    }
}

fn blob(method: &str, digest: &str, body: &[u8], store: &mut Store) -> Answer {
    let is_digest = digest.strip_prefix("sha256:").is_some_and(|hex| hex.parse::<Digest>().is_ok());
    if !is_digest {
        return Answer::error(400, "invalid digest format");
    }
    match (method, store.blobs.contains_key(digest)) {
        ("HEAD", true) | ("POST", true) => Answer::empty(200),
        ("HEAD", false) => Answer::empty(404),
        ("POST", false) => {
            let found = format!("sha256:{}", Digest::of(body));
            // Kept under its own digest, right or wrong.
            store.blobs.insert(found.clone(), body.len() as u64);
            if found != digest {
                return Answer::error(400, &format!("digest mismatch, expected {digest:?}, got {found:?}"));
            }
            Answer::empty(201)
        }
        _ => Answer::empty(405),
    }
}

fn create(object: &Value, store: &mut Store) -> Answer {
    let name = whole(object["model"].as_str().unwrap_or_default());
    if !is_name(&name) {
        return Answer::error(400, "invalid model name");
    }
    let Some(files) = object["files"].as_object().filter(|files| !files.is_empty()) else {
        return Answer::error(400, "neither 'from' or 'files' was specified");
    };
    let begun = |mut lines: Vec<&str>, error: String| {
        lines.insert(0, "parsing GGUF");
        let lines = lines.into_iter().map(|status| json!({ "status": status }));
        stream(lines.chain([json!({ "error": error })]))
    };
    let mut size = 0;
    for digest in files.values().map(|digest| digest.as_str().unwrap_or_default()) {
        match store.blobs.get(digest) {
            Some(bytes) => size += bytes,
            None => {
                let path = digest.replace(':', "-");
                return begun(vec![], format!("open /models/blobs/{path}: no such file or directory"));
            }
        }
    }
    if object["adapters"].as_object().is_some_and(|files| files.len() != 1) {
        return Answer::error(400, "only one adapter is currently supported");
    }
    for digest in object["adapters"].as_object().into_iter().flat_map(|files| files.values()) {
        match store.blobs.get(digest.as_str().unwrap_or_default()) {
            Some(bytes) => size += bytes,
            None => return begun(vec![], "no such file or directory".into()),
        }
    }
    let template = object["template"].as_str().unwrap_or_default();
    if template.matches("{{").count() != template.matches("}}").count() {
        return begun(vec!["verifying conversion"], "template error: template: :1: unclosed action".into());
    }
    // Weights that it converts get another digest; here it is that of the request.
    let is_gguf = files.len() == 1 && object["quantize"].is_null();
    let weights = match files.values().next().and_then(|digest| digest.as_str()?.strip_prefix("sha256:")) {
        Some(digest) if is_gguf => digest.to_string(),
        _ => digest_of(&json!([object["files"], object["quantize"]])),
    };
    let mut lines = vec![];
    if is_gguf {
        lines.push("parsing GGUF".to_string());
        lines.push("verifying conversion".to_string());
        lines.push(format!("using existing layer sha256:{weights}"));
    } else {
        lines.push("converting model".into());
        lines.push(format!("creating new layer sha256:{weights}"));
    }
    if object["adapters"].is_object() {
        lines.insert(0, "parsing GGUF".into());
        lines.push(format!("using existing layer sha256:{}", adapter_of(object)));
    }
    if !template.is_empty() {
        lines.push(format!("creating new layer sha256:{}", Digest::of(template.as_bytes())));
    }
    lines.push("writing manifest".into());
    lines.push("success".into());
    let mut request = object.clone();
    request["weights"] = weights.clone().into();
    // Of what the model is, whatever its name.
    request["model"] = Value::Null;
    let digest = digest_of(&request);
    let model = Model { name: name.clone(), digest, size, request: object.clone(), weights };
    store.models.insert(name.to_lowercase(), model);
    stream(lines.iter().map(|status| json!({ "status": status })))
}

/// The digest of an adapter in one GGUF, which is kept as it is. What it makes of an adapter in
/// safetensors files is another thing, and nobody asks for it.
fn adapter_of(request: &Value) -> String {
    let mut files = request["adapters"].as_object().into_iter().flatten();
    let digest = files.next().and_then(|(_, digest)| digest.as_str()?.strip_prefix("sha256:"));
    digest.unwrap_or_default().to_string()
}

/// Of a value, in whatever order its fields come.
fn digest_of(value: &Value) -> String {
    fn write(value: &Value, text: &mut String) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields.iter().collect::<BTreeMap<_, _>>() {
                    text.push_str(name);
                    write(value, text);
                }
            }
            Value::Array(list) => list.iter().for_each(|value| write(value, text)),
            other => text.push_str(&other.to_string()),
        }
        text.push(',');
    }
    let mut text = String::new();
    write(value, &mut text);
    Digest::of(text.as_bytes()).to_string()
}

fn stream(lines: impl Iterator<Item = Value>) -> Answer {
    let pieces = lines.map(|line| format!("{line}\n").into_bytes()).collect();
    Answer { status: 200, kind: "application/x-ndjson", pieces, is_stream: true }
}

fn shown(model: &Model) -> Value {
    let request = &model.request;
    let template = request["template"].as_str().unwrap_or_default();
    let adapter = match &request["adapters"] {
        Value::Null => String::new(),
        _ => format!("ADAPTER /models/blobs/sha256-{}\n", adapter_of(request)),
    };
    let modelfile = format!(
        "# Modelfile generated by \"ollama show\"\n# To build a new Modelfile based on this, replace FROM with:\n# FROM {}\n\nFROM /models/blobs/sha256-{}\n{adapter}TEMPLATE \"\"\"{template}\"\"\"\n",
        model.name, model.weights
    );
    json!({
        "license": request["license"].as_array().map(|all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")).unwrap_or_default(),
        "modelfile": modelfile, "parameters": "", "template": template,
        "system": request["system"].as_str().unwrap_or_default(),
        "details": { "format": "gguf", "family": "llama" }, "model_info": {}, "capabilities": ["completion"],
    })
}

/// With its tag.
fn whole(name: &str) -> String {
    if name.rfind(':') > name.rfind('/') { name.into() } else { format!("{name}:latest") }
}

fn is_name(name: &str) -> bool {
    let (path, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    let is_part = |part: &str| {
        (1..=80).contains(&part.len())
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
            && part.as_bytes()[0] != b'-'
            && part.as_bytes()[0] != b'.'
    };
    is_part(tag) && path.split('/').all(is_part)
}
