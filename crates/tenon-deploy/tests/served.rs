//! llama-server and servers with OpenAI's API: what every backend guarantees, asked of stand-ins that
//! answer as those do (llama.cpp build 10488; vLLM's and OpenAI's documented answers), and of a real
//! llama-server where `TENON_TEST_LLAMA_SERVER` gives its address.
#![allow(clippy::unwrap_used)] // tests

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenon_checkpoint::Digest;
use tenon_deploy::{
    Backend, Environment, EnvironmentKind, Error, ModelSettings, Order, Payload, SourceFile, Watch, backend,
};

type Answer = (u16, String);

/// A server of which a function answers.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

fn serve(answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Server {
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
    Server { url, seen }
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
        // Silence.
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

fn completion(text: &str) -> Answer {
    let choice =
        json!({"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": text}});
    (200, json!({"choices": [choice], "usage": {"completion_tokens": 1}}).to_string())
}

fn error(status: u16, said: &str) -> Answer {
    (status, json!({"error": {"code": status, "message": said, "type": "x"}}).to_string())
}

/// A llama-server that routes, over a directory.
fn router(dir: &Path) -> Server {
    let dir = dir.to_path_buf();
    // Known models, and whether they are loaded.
    let models = Mutex::new(BTreeMap::<String, &'static str>::new());
    serve(move |request, body| {
        let mut models = models.lock().unwrap();
        let model = body["model"].as_str().unwrap_or_default();
        match request.split(['?', ' ']).nth(1).unwrap() {
            "/props" => (200, json!({"role": "router", "build_info": "b10488"}).to_string()),
            "/v1/models" => {
                if request.contains("reload=") {
                    let files = std::fs::read_dir(&dir)
                        .unwrap()
                        .map(|e| e.unwrap().file_name().into_string().unwrap());
                    let names: Vec<_> =
                        files.filter_map(|name| Some(name.strip_suffix(".gguf")?.to_string())).collect();
                    models.retain(|name, _| names.contains(name));
                    names.into_iter().for_each(|name| {
                        models.entry(name).or_insert("unloaded");
                    });
                }
                let data: Vec<_> = models.iter().map(|(id, value)| json!({"id": id, "status": {"value": value, "failed": *value == "failed", "exit_code": 1}})).collect();
                // What loads now is loaded when asked again.
                models.values_mut().filter(|value| **value == "loading").for_each(|value| *value = "loaded");
                (200, json!({"data": data, "object": "list"}).to_string())
            }
            "/models/load" => match models.get_mut(model) {
                None => error(404, "model is not found"),
                Some(value) if *value != "unloaded" && *value != "failed" => {
                    error(400, "model is already running")
                }
                Some(value) => {
                    let bytes = std::fs::read(dir.join(format!("{model}.gguf"))).unwrap();
                    *value = if bytes.starts_with(b"GGUF") { "loading" } else { "failed" };
                    (200, json!({"success": true}).to_string())
                }
            },
            "/models/unload" => match models.get_mut(model) {
                Some(value) if *value == "loaded" => {
                    *value = "unloaded";
                    (200, json!({"success": true}).to_string())
                }
                _ => error(400, "model is not running"),
            },
            "/v1/chat/completions" if models.contains_key(model) => completion("I"),
            _ => error(404, "File Not Found"),
        }
    })
}

/// A server that lists the names in a directory: commands put them there.
fn listing(dir: &Path, said: Answer) -> Server {
    let dir = dir.to_path_buf();
    serve(move |request, body| match request {
        "GET /version" => (200, json!({"version": "0.11.2"}).to_string()),
        "GET /v1/models" => {
            let names =
                std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            let data: Vec<_> = names.map(|id| json!({"id": id, "object": "model", "owned_by": "vllm", "root": format!("/models/{id}")})).collect();
            (200, json!({"object": "list", "data": data}).to_string())
        }
        "POST /v1/chat/completions" | "POST /v1/completions"
            if dir.join(body["model"].as_str().unwrap()).exists() =>
        {
            said.clone()
        }
        _ => error(404, "The model does not exist."),
    })
}

struct Setting {
    here: tempfile::TempDir,
    there: tempfile::TempDir,
    served: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        let dir = || tempfile::tempdir().unwrap();
        Self { here: dir(), there: dir(), served: dir() }
    }

    fn file(&self, name: &str, content: &[u8]) -> SourceFile {
        let path = self.here.path().join(name);
        std::fs::write(&path, content).unwrap();
        SourceFile { name: name.into(), path, bytes: content.len() as u64, sha256: Digest::of(content) }
    }

    fn gguf(&self, content: &[u8]) -> Order {
        // Artifacts have names without an extension.
        order(Payload::Gguf(self.file("artifact", content)))
    }

    fn directory(&self) -> Order {
        let files = vec![self.file("config.json", b"{}"), self.file("model.safetensors", &[7; 100_000])];
        order(Payload::Directory { dir: self.here.path().into(), files })
    }

    fn environment(&self, kind: EnvironmentKind, url: &str, options: &[(&str, String)]) -> Environment {
        let mut environment = Environment::new(kind, url);
        environment.timeout_seconds = 1.0;
        let quick = [("retry-delay", "0.01"), ("retries", "1"), ("load-timeout", "2")];
        environment.options.extend(quick.map(|(name, value)| (name.to_string(), value.to_string())));
        environment.options.extend(options.iter().map(|(name, value)| (name.to_string(), value.clone())));
        environment.validate().unwrap();
        environment
    }

    fn commands(&self) -> [(&'static str, String); 3] {
        let served = self.served.path().display();
        [
            ("models-dir", self.there.path().display().to_string()),
            (
                "start-command",
                format!("sh -c 'echo starting \"$1\"; touch {served}/\"$0\"' {{model}} {{path}}"),
            ),
            ("stop-command", format!("rm -f {served}/{{model}}")),
        ]
    }
}

fn order(payload: Payload) -> Order {
    Order {
        model: "my-model".into(),
        payload,
        quantize: None,
        made_before: vec![],
        settings: ModelSettings::default(),
    }
}

#[derive(Default)]
struct Heard {
    sent: AtomicU64,
    said: Mutex<Vec<String>>,
}

impl Watch for Heard {
    fn advanced(&self, _: u64, sent: u64) {
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }
    fn said(&self, line: &str) {
        self.said.lock().unwrap().push(line.into());
    }
}

/// What every backend guarantees.
fn conforms(backend: &dyn Backend, order: &Order) {
    let heard = Heard::default();
    backend.check(Some(&order.settings), &heard).unwrap();
    assert!(backend.find(&order.model, &heard).unwrap().is_none());
    assert!(matches!(backend.verify(order, &heard), Err(Error::NotListed { .. })));
    backend.deploy(order, &heard).unwrap();
    let verified = backend.verify(order, &heard).unwrap();
    assert_eq!(verified.found.model, order.model);
    assert!(!verified.answer.text.is_empty());
    let sent = heard.sent.load(Ordering::Relaxed);
    assert_eq!(sent, order.payload.bytes());
    // Again: nothing is sent.
    backend.deploy(order, &heard).unwrap();
    assert_eq!(heard.sent.load(Ordering::Relaxed), sent);
    let found = backend.find(&order.model, &heard).unwrap().unwrap();
    assert!(found.weights.contains(&order.payload.files().last().unwrap().sha256));
    assert!(backend.answers(&order.model, &heard).is_ok());
    assert!(backend.remove(&order.model, &heard).unwrap());
    assert!(backend.find(&order.model, &heard).unwrap().is_none());
    assert!(backend.model_name("no / such", true).is_err());
    assert_eq!(backend.model_name("a b", false).unwrap(), "a-b");
}

#[test]
fn a_llama_server_that_routes() {
    let setting = Setting::new();
    let server = router(setting.there.path());
    let options = [("models-dir", setting.there.path().display().to_string())];
    let environment = setting.environment(EnvironmentKind::LlamaServer, &server.url, &options);
    let backend = backend(&environment).unwrap();
    conforms(&*backend, &setting.gguf(b"GGUF one"));
    assert!(server.seen.lock().unwrap().iter().any(|request| request == "POST /models/load"));
    // Another file of the same name is loaded anew.
    backend.deploy(&setting.gguf(b"GGUF one"), &()).unwrap();
    backend.deploy(&setting.gguf(b"GGUF two"), &()).unwrap();
    let found = backend.find("my-model", &()).unwrap().unwrap();
    assert_eq!(found.weights, [Digest::of(b"GGUF two")]);
    // One that it cannot load.
    let error = backend.deploy(&setting.gguf(b"no gguf"), &()).unwrap_err().to_string();
    assert!(error.contains("exit code 1"), "{error}");
    // A directory is not for it.
    assert!(matches!(backend.deploy(&setting.directory(), &()), Err(Error::Unsupported { .. })));
}

#[test]
fn a_router_over_another_directory_is_told_apart() {
    let setting = Setting::new();
    let server = router(setting.served.path());
    let options = [("models-dir", setting.there.path().display().to_string())];
    let backend = backend(&setting.environment(EnvironmentKind::LlamaServer, &server.url, &options)).unwrap();
    let error = backend.deploy(&setting.gguf(b"GGUF"), &()).unwrap_err().to_string();
    assert!(error.contains("--models-dir"), "{error}");
}

#[test]
fn a_server_that_a_command_starts() {
    for kind in [EnvironmentKind::Vllm, EnvironmentKind::OpenAi] {
        let setting = Setting::new();
        let server = listing(setting.served.path(), completion("I"));
        let environment = setting.environment(kind, &format!("{}/v1", server.url), &setting.commands());
        if kind == EnvironmentKind::OpenAi {
            conforms(&*backend(&environment).unwrap(), &setting.directory());
            continue;
        }
        let environment = Environment { url: server.url.clone(), ..environment };
        let backend = backend(&environment).unwrap();
        conforms(&*backend, &setting.directory());
        let heard = Heard::default();
        backend.deploy(&setting.directory(), &heard).unwrap();
        let path = setting.there.path().join("my-model").display().to_string();
        assert!(heard.said.lock().unwrap().contains(&format!("start-command: starting {path}")));
        assert_eq!(std::fs::read(Path::new(&path).join("model.safetensors")).unwrap(), [7; 100_000]);
        assert_eq!(backend.check(None, &()).unwrap().version.as_deref(), Some("0.11.2"));
        assert!(matches!(backend.deploy(&setting.gguf(b"GGUF"), &()), Err(Error::Unsupported { .. })));
    }
}

#[test]
fn without_a_command_it_must_be_served_already() {
    let setting = Setting::new();
    let server = listing(setting.served.path(), completion("I"));
    let backend = backend(&setting.environment(EnvironmentKind::OpenAi, &server.url, &[])).unwrap();
    let order = setting.directory();
    let error = backend.deploy(&order, &()).unwrap_err();
    assert!(error.to_string().contains(&setting.here.path().display().to_string()), "{error}");
    std::fs::write(setting.served.path().join("my-model"), "").unwrap();
    backend.deploy(&order, &()).unwrap();
    assert_eq!(backend.verify(&order, &()).unwrap().answer.text, "I");
    assert!(matches!(backend.remove("my-model", &()), Err(Error::Unsupported { .. })));
}

#[test]
fn answers_that_are_none() {
    let empty =
        json!({"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 0}}).to_string();
    for said in [
        error(500, "out of memory"),
        (200, empty),
        (200, r#"{"choices": []}"#.into()),
        (200, "<html>".into()),
    ] {
        let setting = Setting::new();
        std::fs::write(setting.served.path().join("my-model"), "").unwrap();
        let server = listing(setting.served.path(), said.clone());
        let backend = backend(&setting.environment(EnvironmentKind::Vllm, &server.url, &[])).unwrap();
        let error = backend.verify(&setting.directory(), &()).unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{said:?}: {error}");
    }
}

#[test]
fn wrong_silent_and_refusing_servers() {
    let setting = Setting::new();
    let try_all = |said: Answer| -> Vec<Error> {
        let server = serve(move |_, _| said.clone());
        let kinds = [EnvironmentKind::LlamaServer, EnvironmentKind::Vllm, EnvironmentKind::OpenAi];
        let failed = kinds.map(|kind| {
            backend(&setting.environment(kind, &server.url, &[])).unwrap().check(None, &()).unwrap_err()
        });
        failed.into()
    };
    assert!(
        try_all((200, "<html>a router of the home".into()))
            .iter()
            .all(|e| matches!(e, Error::WrongServer { .. }))
    );
    assert!(try_all(error(404, "no")).iter().all(|e| matches!(e, Error::WrongServer { .. })));
    assert!(try_all(error(401, "key?")).iter().all(|e| matches!(e, Error::Refused { status: 401, .. })));
    assert!(try_all((0, String::new())).iter().all(|e| matches!(e, Error::Hung { .. })));
}

#[test]
fn a_command_that_fails_or_hangs_and_a_cancelled_wait() {
    let setting = Setting::new();
    let server = listing(setting.served.path(), completion("I"));
    let deploy = |command: &str, watch: &dyn Watch| {
        let options = [("start-command", command.to_string()), ("command-timeout", "0.5".into())];
        let environment = setting.environment(EnvironmentKind::Vllm, &server.url, &options);
        backend(&environment).unwrap().deploy(&setting.directory(), watch).unwrap_err()
    };
    let failed = deploy("sh -c 'echo no GPU here >&2; exit 7'", &()).to_string();
    assert!(failed.contains("no GPU here") && failed.contains('7'), "{failed}");
    assert!(deploy("sleep 30", &()).to_string().contains("background"));
    // It succeeded, and the model does not appear.
    assert!(matches!(deploy("true", &()), Error::NotListed { .. }));
    struct Soon(Instant);
    impl Watch for Soon {
        fn cancelled(&self) -> bool {
            self.0.elapsed() > Duration::from_millis(200)
        }
    }
    let begin = Instant::now();
    assert!(deploy("true", &Soon(begin)).is_cancelled());
    assert!(begin.elapsed() < Duration::from_millis(1500));
}

/// `TENON_TEST_LLAMA_SERVER=URL` of a llama-server that routes over `TENON_TEST_LLAMA_MODELS_DIR`, and
/// `TENON_TEST_LLAMA_GGUF` the file of a model.
#[test]
fn a_real_llama_server() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(url) = variable("TENON_TEST_LLAMA_SERVER") else { return };
    let dir = variable("TENON_TEST_LLAMA_MODELS_DIR").expect("where the server's models are");
    let gguf = PathBuf::from(variable("TENON_TEST_LLAMA_GGUF").expect("a GGUF"));
    let content = std::fs::read(&gguf).unwrap();
    let setting = Setting::new();
    let mut environment = setting.environment(EnvironmentKind::LlamaServer, &url, &[("models-dir", dir)]);
    environment.timeout_seconds = 20.0;
    environment.options.insert("load-timeout".into(), "120".into());
    let file = SourceFile {
        name: "x.gguf".into(),
        path: gguf,
        bytes: content.len() as u64,
        sha256: Digest::of(&content),
    };
    let order = Order { model: "tenon-test-model".into(), ..order(Payload::Gguf(file)) };
    conforms(&*backend(&environment).unwrap(), &order);
}
