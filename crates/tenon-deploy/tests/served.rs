//! llama-server and servers with OpenAI's API: what every backend guarantees, asked of stand-ins that
//! answer as those do, and of a real
//! llama-server where `TENON_TEST_LLAMA_SERVER` gives its address.
#![allow(clippy::unwrap_used)] // tests

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tenon_checkpoint::Digest;
use tenon_deploy::{
    Backend, Environment, EnvironmentKind, Error, ModelSettings, Order, Payload, SourceFile, Watch, backend,
};
use tenon_standin::served::{Answer, Server, completion, error};

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

    fn environment_unchecked(&self, url: &str, options: &[(&str, String)]) -> Environment {
        let mut environment = Environment::new(EnvironmentKind::OpenAi, url);
        environment.options.extend(options.iter().map(|(name, value)| (name.to_string(), value.clone())));
        environment
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
    let condition = backend.check(Some(&order.settings), &heard).unwrap();
    assert!(condition.free_bytes.is_some_and(|room| room > 0), "of the directory that both see");
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
    let server = Server::router(setting.there.path());
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

/// An adapter in GGUF, and its base.
fn adapter_with_base(setting: &Setting) -> Order {
    let files = vec![setting.file("adapter.lora", b"GGUF adapter")];
    let base = vec![setting.file("base-q8_0.gguf", b"GGUF base")];
    order(Payload::Adapter { dir: setting.here.path().into(), files, base })
}

#[test]
fn a_llama_server_that_routes_starts_an_adapter_on_its_base() {
    let setting = Setting::new();
    let there = setting.there.path();
    let presets = setting.served.path().join("models.ini");
    let server = Server::router_with(there, Some(&presets));
    let options =
        [("models-dir", there.display().to_string()), ("models-preset", presets.display().to_string())];
    let environment = setting.environment(EnvironmentKind::LlamaServer, &server.url, &options);
    let backend = backend(&environment).unwrap();
    assert!(backend.capabilities().adapters);
    let order = adapter_with_base(&setting);
    conforms(&*backend, &order);
    assert_eq!(std::fs::read_to_string(&presets).unwrap(), "");
    assert_eq!(std::fs::read_dir(there).unwrap().count(), 0);
    // A whole model in its place has none.
    backend.deploy(&order, &()).unwrap();
    let section = std::fs::read_to_string(&presets).unwrap();
    assert!(section.contains(&format!("lora = {}/my-model/adapter.lora", there.display())), "{section}");
    backend.deploy(&setting.gguf(b"GGUF whole"), &()).unwrap();
    assert_eq!(std::fs::read_to_string(&presets).unwrap(), "");
    assert!(backend.verify(&setting.gguf(b"GGUF whole"), &()).is_ok());

    // A server that does not read that file would answer with the base alone.
    let setting = Setting::new();
    let server = Server::router(setting.there.path());
    let presets = setting.served.path().join("other.ini").display().to_string();
    let options = [("models-dir", setting.there.path().display().to_string()), ("models-preset", presets)];
    let backend =
        tenon_deploy::backend(&setting.environment(EnvironmentKind::LlamaServer, &server.url, &options))
            .unwrap();
    let order = adapter_with_base(&setting);
    backend.deploy(&order, &()).unwrap();
    let error = backend.verify(&order, &()).unwrap_err().to_string();
    assert!(error.contains("--models-preset") && error.contains("none"), "{error}");
    assert!(backend.remove(&order.model, &()).unwrap());
}

#[test]
fn a_command_starts_an_adapter_on_its_base() {
    let setting = Setting::new();
    let served = setting.served.path().join("served");
    let file = served.clone();
    let server = Server::answering(move |request, _| {
        let served = std::fs::read_to_string(&file).unwrap_or_default();
        match request.split(['?', ' ']).nth(1).unwrap() {
            "/props" => (200, json!({ "build_info": "b10488", "model_path": "x" }).to_string()),
            "/v1/models" if served.is_empty() => (200, json!({ "data": [] }).to_string()),
            "/v1/models" => (200, json!({ "data": [{ "id": "my-model" }] }).to_string()),
            "/lora-adapters" => (200, json!([{ "id": 0, "path": served, "scale": 1.0 }]).to_string()),
            _ => completion("I"),
        }
    });
    let options = [
        ("models-dir", setting.there.path().display().to_string()),
        (
            "adapter-command",
            format!("sh -c 'printf %s \"$1\" > {}; test -f \"$0\"' {{path}} {{adapter}}", served.display()),
        ),
        ("stop-command", format!("rm -f {}", served.display())),
    ];
    let backend = backend(&setting.environment(EnvironmentKind::LlamaServer, &server.url, &options)).unwrap();
    conforms(&*backend, &adapter_with_base(&setting));
    // Without either there is no way.
    let without =
        tenon_deploy::backend(&setting.environment(EnvironmentKind::LlamaServer, &server.url, &[])).unwrap();
    assert!(!without.capabilities().adapters);
    assert!(without.deploy(&adapter_with_base(&setting), &()).is_err());
}

#[test]
fn a_router_over_another_directory_is_told_apart() {
    let setting = Setting::new();
    let server = Server::router(setting.served.path());
    let options = [("models-dir", setting.there.path().display().to_string())];
    let backend = backend(&setting.environment(EnvironmentKind::LlamaServer, &server.url, &options)).unwrap();
    let error = backend.deploy(&setting.gguf(b"GGUF"), &()).unwrap_err().to_string();
    assert!(error.contains("--models-dir"), "{error}");
}

#[test]
fn a_server_that_a_command_starts() {
    for kind in [EnvironmentKind::Vllm, EnvironmentKind::OpenAi] {
        let setting = Setting::new();
        let server = Server::listing(setting.served.path(), completion("I"));
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
        assert_eq!(backend.check(None, &()).unwrap().version.as_deref(), Some("0.32.0"));
        assert!(matches!(backend.deploy(&setting.gguf(b"GGUF"), &()), Err(Error::Unsupported { .. })));
    }
}

#[test]
fn a_server_that_comes_up_may_have_no_list_at_first() {
    for early in [error(404, "not found"), (200, "<html>starting</html>".into())] {
        let setting = Setting::new();
        let asked = AtomicU64::new(0);
        let server = Server::answering(move |_, _| match asked.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => early.clone(),
            _ => (200, json!({ "data": [{ "id": "my-model" }] }).to_string()),
        });
        let environment = setting.environment(EnvironmentKind::OpenAi, &server.url, &setting.commands());
        backend(&environment).unwrap().deploy(&setting.directory(), &()).unwrap();
    }
}

#[test]
fn without_a_command_it_must_be_served_already() {
    let setting = Setting::new();
    let server = Server::listing(setting.served.path(), completion("I"));
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
        let server = Server::listing(setting.served.path(), said.clone());
        let backend = backend(&setting.environment(EnvironmentKind::Vllm, &server.url, &[])).unwrap();
        let error = backend.verify(&setting.directory(), &()).unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{said:?}: {error}");
    }
}

#[test]
fn wrong_silent_and_refusing_servers() {
    let setting = Setting::new();
    let try_all = |said: Answer| -> Vec<Error> {
        let server = Server::answering(move |_, _| said.clone());
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
    let server = Server::listing(setting.served.path(), completion("I"));
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

#[test]
fn a_server_that_a_command_starts_need_not_run_before() {
    for kind in [EnvironmentKind::Vllm, EnvironmentKind::OpenAi, EnvironmentKind::LlamaServer] {
        let setting = Setting::new();
        // Nobody listens there.
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{closed}");
        let environment = setting.environment(kind, &url, &setting.commands());
        let condition = backend(&environment).unwrap().check(None, &()).unwrap();
        assert!(condition.not_running && condition.notes[0].contains("start-command is to start it"));
        // Without such a command it is an error, and so is a command that starts nothing.
        let bare = backend(&setting.environment(kind, &url, &[])).unwrap();
        assert!(matches!(bare.check(None, &()), Err(Error::Unreachable { .. })));
        let order =
            if kind == EnvironmentKind::LlamaServer { setting.gguf(b"GGUF") } else { setting.directory() };
        let error = backend(&environment).unwrap().deploy(&order, &()).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
}

#[test]
fn a_server_that_lists_nothing_is_asked_by_its_own_name() {
    let setting = Setting::new();
    let file = setting.served.path().join("served");
    let server = Server::pinned(&file);
    let there = setting.there.path().display().to_string();
    let options = [
        ("models-dir", there.clone()),
        ("served-name", "{path}".into()),
        ("start-command", format!("sh -c 'printf %s \"$0\" > {}' {{path}}", file.display())),
        ("stop-command", format!("rm -f {}", file.display())),
    ];
    let environment = setting.environment(EnvironmentKind::OpenAi, &server.url, &options);
    let backend = backend(&environment).unwrap();
    let order = setting.directory();
    assert!(backend.find(&order.model, &()).unwrap().is_none());
    backend.deploy(&order, &()).unwrap();
    let verified = backend.verify(&order, &()).unwrap();
    assert_eq!(verified.found.model, order.model);
    assert_eq!(verified.found.called, Some(format!("{there}/my-model")));
    assert_eq!(verified.answer.text, "I");
    assert!(backend.answers(&order.model, &()).is_ok());
    // Another model in its place.
    std::fs::write(&file, "/models/other").unwrap();
    assert!(backend.find(&order.model, &()).unwrap().is_none());
    assert!(backend.remove(&order.model, &()).unwrap());
    assert!(!setting.there.path().join("my-model").exists());
    // What its path is there must be known.
    let without = setting.environment_unchecked(&server.url, &[("served-name", "{path}".into())]);
    assert!(matches!(tenon_deploy::backend(&without), Err(Error::BadOption { .. })));
}

#[test]
fn an_adapter_is_loaded_on_what_vllm_serves() {
    let setting = Setting::new();
    std::fs::write(setting.served.path().join("base"), "").unwrap();
    let server = Server::listing(setting.served.path(), completion("I"));
    let files = vec![
        setting.file("adapter_config.json", b"{}"),
        setting.file("adapter_model.safetensors", &[3; 1000]),
    ];
    let payload = Payload::Adapter { dir: setting.here.path().into(), files, base: vec![] };
    let order = order(payload);
    let options = [("models-dir", setting.there.path().display().to_string())];
    let environment = setting.environment(EnvironmentKind::Vllm, &server.url, &options);
    let backend = backend(&environment).unwrap();
    assert!(backend.capabilities().adapters);
    conforms(&*backend, &order);
    assert!(!setting.there.path().join("my-model").exists());
    // Without a directory it is loaded from where it lies; only once at a time.
    let in_place =
        tenon_deploy::backend(&setting.environment(EnvironmentKind::Vllm, &server.url, &[])).unwrap();
    in_place.deploy(&order, &()).unwrap();
    in_place.deploy(&order, &()).unwrap();
    assert_eq!(in_place.find("my-model", &()).unwrap().unwrap().model, "my-model");
    assert!(in_place.remove("my-model", &()).unwrap());
    assert!(setting.here.path().join("adapter_config.json").exists(), "what lies here is nobody's to remove");
    // The name of what is served itself is not for an adapter.
    let named = Order { model: "base".into(), ..order.clone() };
    assert!(matches!(in_place.deploy(&named, &()), Err(Error::BadModelName { .. })));
    // A server that must not load any.
    std::fs::remove_file(setting.served.path().join("base")).unwrap();
    let error = in_place.deploy(&order, &()).unwrap_err().to_string();
    assert!(error.contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING"), "{error}");
    // Files that it does not find.
    std::fs::write(setting.served.path().join("base"), "").unwrap();
    std::fs::rename(setting.here.path().join("adapter_config.json"), setting.here.path().join("x")).unwrap();
    std::fs::write(setting.here.path().join("adapter_config.json.x"), "{}").unwrap();
    let error = in_place.deploy(&order, &()).unwrap_err();
    assert!(
        error.to_string().contains("adapter_config.json") || error.to_string().contains("No adapter found")
    );
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

/// `TENON_TEST_VLLM=URL` of a vLLM on this machine that serves the base of `fixtures/kjv-llama`, started with
/// `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`.
#[test]
fn a_real_vllm_takes_an_adapter() {
    let Ok(url) = std::env::var("TENON_TEST_VLLM") else { return };
    let setting = Setting::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/kjv-llama/adapter-lora");
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    let files = files.map(|name| setting.file(name, &std::fs::read(dir.join(name)).unwrap())).to_vec();
    let payload = Payload::Adapter { dir: setting.here.path().into(), files, base: vec![] };
    let options = [("models-dir", setting.there.path().display().to_string())];
    let mut environment = setting.environment(EnvironmentKind::Vllm, &url, &options);
    environment.timeout_seconds = 20.0;
    environment.options.insert("load-timeout".into(), "120".into());
    conforms(&*backend(&environment).unwrap(), &order(payload));
}
