//! Servers that take no files over their API: llama-server, vLLM, and others with OpenAI's API. They
//! answer as llama.cpp build 10488, transformers 5.23 and vLLM 0.32 do, and run no model.
#![allow(clippy::unwrap_used)] // a stand-in for tests: what it cannot do, it does not survive

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// A status and a body; status 0 is silence.
pub type Answer = (u16, String);

/// A server of which a function answers.
pub struct Server {
    /// Its address.
    pub url: String,
    /// The requests that were made, `METHOD /path`.
    pub seen: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Listens on a port of its own, and answers each request with what a function says to its line and body.
    pub fn answering(answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                std::thread::spawn(move || one(&stream.unwrap(), &log, &*answer));
            }
        });
        Self { url, seen }
    }

    /// A llama-server that routes, over a directory.
    pub fn router(dir: &Path) -> Self {
        Self::router_with(dir, None)
    }

    /// The same, started with a file of presets as well.
    pub fn router_with(dir: &Path, presets: Option<&Path>) -> Self {
        let (dir, presets) = (dir.to_path_buf(), presets.map(Path::to_path_buf));
        // Known models, and whether they are loaded; those that have an adapter, as they were loaded.
        let models = Mutex::new(BTreeMap::<String, &'static str>::new());
        let adapted = Mutex::new(BTreeMap::<String, String>::new());
        Self::answering(move |request, body| {
            let mut models = models.lock().unwrap();
            let mut adapted = adapted.lock().unwrap();
            let preset = |model: &str, key: &str| preset(presets.as_deref()?, model, key);
            let model = body["model"].as_str().unwrap_or_default();
            match request.split(['?', ' ']).nth(1).unwrap() {
                "/props" => (200, json!({ "role": "router", "build_info": "b10488" }).to_string()),
                "/v1/models" => {
                    if request.contains("reload=") {
                        look_again(&dir, presets.as_deref(), &mut models);
                    }
                    let data: Vec<_> = models.iter().map(|(id, value)| json!({ "id": id, "status": { "value": value, "failed": *value == "failed", "exit_code": 1 } })).collect();
                    // What loads now is loaded when asked again.
                    models
                        .values_mut()
                        .filter(|value| **value == "loading")
                        .for_each(|value| *value = "loaded");
                    (200, json!({ "data": data, "object": "list" }).to_string())
                }
                "/models/load" => match models.get_mut(model) {
                    None => error(404, "model is not found"),
                    Some(value) if *value != "unloaded" && *value != "failed" => {
                        error(400, "model is already running")
                    }
                    Some(value) => {
                        let path = match preset(model, "model") {
                            Some(path) => path.into(),
                            None => file_of(&dir, model),
                        };
                        adapted.remove(model);
                        adapted.extend(preset(model, "lora").map(|path| (model.to_string(), path)));
                        let bytes = std::fs::read(path).unwrap();
                        *value = if bytes.starts_with(b"GGUF") { "loading" } else { "failed" };
                        (200, json!({ "success": true }).to_string())
                    }
                },
                "/models/unload" => match models.get_mut(model) {
                    Some(value) if *value == "loaded" => {
                        *value = "unloaded";
                        (200, json!({ "success": true }).to_string())
                    }
                    _ => error(400, "model is not running"),
                },
                "/v1/chat/completions" if models.contains_key(model) => completion("I"),
                "/lora-adapters" => {
                    let model = request.split("model=").nth(1).unwrap_or_default();
                    let model = model.split(' ').next().unwrap_or_default();
                    let list = adapted.get(model).map(|path| json!({ "id": 0, "path": path, "scale": 1.0 }));
                    (200, Value::from_iter(list).to_string())
                }
                _ => error(404, "File Not Found"),
            }
        })
    }

    /// A vLLM that lists the names in a directory, where commands put them, and adapters that it is told to
    /// load. Where a file `.by-path` is, it calls models by their paths.
    pub fn listing(dir: &Path, said: Answer) -> Self {
        let dir = dir.to_path_buf();
        // By name, where they lie.
        let adapters = Mutex::new(BTreeMap::<String, String>::new());
        Self::answering(move |request, body| {
            let mut adapters = adapters.lock().unwrap();
            let by_path = dir.join(".by-path").exists();
            let asked = body["model"].as_str().unwrap_or_default();
            // The name of its own alone.
            let model = match asked.strip_prefix("/models/") {
                Some(name) if by_path => name,
                None if !by_path => asked,
                _ => "nobody",
            };
            let named = |field: &str| body[field].as_str().unwrap_or_default().to_string();
            match request {
                "GET /version" => (200, json!({ "version": "0.32.0" }).to_string()),
                "GET /v1/models" => {
                    let names = std::fs::read_dir(&dir).unwrap();
                    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                    let names = names.filter(|name| !name.starts_with('.'));
                    let called = |id: &String| if by_path { format!("/models/{id}") } else { id.clone() };
                    let model = |id: String| json!({ "id": called(&id), "object": "model", "owned_by": "vllm", "root": format!("/models/{id}"), "parent": null });
                    let adapter = |(id, path): (&String, &String)| json!({ "id": id, "object": "model", "owned_by": "vllm", "root": path, "parent": "base" });
                    let data: Vec<_> = names.map(model).chain(adapters.iter().map(adapter)).collect();
                    (200, json!({ "object": "list", "data": data }).to_string())
                }
                // As started with VLLM_ALLOW_RUNTIME_LORA_UPDATING: where a file of that name is.
                "POST /v1/load_lora_adapter" if dir.join("base").exists() => {
                    let (name, path) = (named("lora_name"), named("lora_path"));
                    if adapters.contains_key(&name) {
                        return error(400, &format!("The lora adapter '{name}' has already been loaded."));
                    }
                    if !Path::new(&path).join("adapter_config.json").exists() {
                        return error(
                            404,
                            &format!("Loading lora {name} failed: No adapter found for {path}"),
                        );
                    }
                    let said = format!("Success: LoRA adapter '{name}' added successfully.");
                    adapters.insert(name, path);
                    (200, said)
                }
                "POST /v1/unload_lora_adapter" if dir.join("base").exists() => {
                    let name = named("lora_name");
                    match adapters.remove(&name) {
                        Some(_) => (200, format!("Success: LoRA adapter '{name}' removed successfully.")),
                        None => error(404, &format!("The lora adapter '{name}' cannot be found.")),
                    }
                }
                "POST /v1/load_lora_adapter" => (404, json!({ "detail": "Not Found" }).to_string()),
                "POST /v1/chat/completions" | "POST /v1/completions"
                    if dir.join(model).exists() || adapters.contains_key(asked) =>
                {
                    said.clone()
                }
                "POST /v1/chat/completions" | "POST /v1/completions" => {
                    error(404, &format!("The model `{asked}` does not exist."))
                }
                _ => (404, json!({ "detail": "Not Found" }).to_string()),
            }
        })
    }

    /// `transformers serve PATH`: serves one directory by its path, whose name a file has, and lists nothing.
    pub fn pinned(file: &Path) -> Self {
        let file = file.to_path_buf();
        Self::answering(move |request, body| {
            let served = std::fs::read_to_string(&file).unwrap_or_default();
            let (served, asked) = (served.trim(), body["model"].as_str().unwrap_or_default());
            match request {
                "GET /v1/models" => (200, json!({ "object": "list", "data": [] }).to_string()),
                "POST /v1/chat/completions" | "POST /v1/completions" if asked == served => completion("  I"),
                "POST /v1/chat/completions" | "POST /v1/completions" => {
                    let detail = format!("Server is pinned to '{served}'; requested '{asked}'.");
                    (400, json!({ "detail": detail }).to_string())
                }
                _ => (404, json!({ "detail": "Not Found" }).to_string()),
            }
        })
    }
}

/// What `/v1/models?reload=1` does.
fn look_again(dir: &Path, presets: Option<&Path>, models: &mut BTreeMap<String, &'static str>) {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let names = entries.filter_map(|path| {
        let name = path.file_name()?.to_str()?.to_string();
        if path.is_dir() {
            return file_of(dir, &name).exists().then_some(name);
        }
        Some(name.strip_suffix(".gguf")?.to_string())
    });
    let text = presets.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let sections =
        text.lines().filter_map(|line| Some(line.strip_prefix('[')?.split(']').next()?.to_string()));
    let names: Vec<_> = names.chain(sections).collect();
    models.retain(|name, _| names.contains(name));
    names.into_iter().for_each(|name| {
        models.entry(name).or_insert("unloaded");
    });
}

/// A file in a router's directory, or the one in a directory of that name.
fn file_of(dir: &Path, model: &str) -> PathBuf {
    let entries = std::fs::read_dir(dir.join(model)).into_iter().flatten().flatten();
    let within =
        entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "gguf"));
    within.unwrap_or_else(|| dir.join(format!("{model}.gguf")))
}

/// What a file of presets has under a key in the sections of a model.
fn preset(presets: &Path, model: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(presets).ok()?;
    let (mut is_in, mut found) = (false, None);
    for line in text.lines() {
        match line.strip_prefix('[') {
            Some(rest) => is_in = rest.split(']').next() == Some(model),
            None if is_in => found = line.split_once(" = ").filter(|(name, _)| *name == key).or(found),
            None => {}
        }
    }
    found.map(|(_, value)| value.to_string())
}

/// A completion of one token.
pub fn completion(text: &str) -> Answer {
    let message = json!({ "role": "assistant", "content": text });
    let choice = json!({ "index": 0, "finish_reason": "length", "message": message });
    (200, json!({ "choices": [choice], "usage": { "completion_tokens": 1 } }).to_string())
}

/// An error as these servers have it.
pub fn error(status: u16, said: &str) -> Answer {
    (status, json!({ "error": { "code": status, "message": said, "type": "x" } }).to_string())
}

fn one(stream: &TcpStream, log: &Mutex<Vec<String>>, answer: &dyn Fn(&str, &Value) -> Answer) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let request = line.trim_end().trim_end_matches(" HTTP/1.1").to_string();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    log.lock().unwrap().push(request.clone());
    let (status, body) = answer(&request, &serde_json::from_slice(&body).unwrap_or(Value::Null));
    if status == 0 {
        std::thread::sleep(Duration::from_secs(5));
        return;
    }
    let mut stream = stream;
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}
