//! Everything that goes wrong on the way to an Ollama server, against the stand-in.
#![allow(clippy::unwrap_used)] // tests

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tenon_checkpoint::Digest;
use tenon_deploy::{
    Backend, Environment, EnvironmentKind, Error, KeySource, ModelSettings, Order, Payload, Refusal,
    SourceFile, Verified, Watch, backend,
};
use tenon_standin::{Act, Rule, StandIn};

const MODEL: &str = "my-model:q8_0";
/// Every request of a deployment, in order.
const REQUESTS: [&str; 8] = [
    "GET /api/version",
    "GET /api/tags",
    "GET /api/ps",
    "HEAD /api/blobs",
    "POST /api/blobs",
    "POST /api/create",
    "POST /api/show",
    "POST /api/generate",
];

/// A model of one file, and an environment that is quick to give up.
struct Setting {
    dir: tempfile::TempDir,
    server: StandIn,
    environment: Environment,
}

impl Setting {
    fn new() -> Self {
        let (dir, server) = (tempfile::tempdir().unwrap(), StandIn::start().unwrap());
        let mut environment = Environment::new(EnvironmentKind::Ollama, server.url());
        environment.timeout_seconds = 0.4;
        for (name, value) in
            [("retry-delay", "0.01"), ("retries", "2"), ("create-timeout", "0.4"), ("load-timeout", "0.4")]
        {
            environment.options.insert(name.into(), value.into());
        }
        Self { dir, server, environment }
    }

    fn option(mut self, name: &str, value: &str) -> Self {
        self.environment.options.insert(name.into(), value.into());
        self
    }

    fn backend(&self) -> Box<dyn Backend> {
        backend(&self.environment).unwrap()
    }

    fn file(&self, name: &str, bytes: usize) -> SourceFile {
        let content: Vec<u8> = (0..bytes).map(|n| (n * 7 + n / 251) as u8).collect();
        let path = self.dir.path().join(name);
        std::fs::write(&path, &content).unwrap();
        SourceFile { name: name.into(), path, bytes: bytes as u64, sha256: Digest::of(&content) }
    }

    fn order(&self) -> Order {
        let settings = ModelSettings { template: Some("{{ .Prompt }}".into()), ..Default::default() };
        let payload = Payload::Gguf(self.file("model.gguf", 300_000));
        Order { model: MODEL.into(), payload, quantize: None, made_before: vec![], settings }
    }

    /// A whole deployment.
    fn deploy(&self, watch: &dyn Watch) -> Result<Verified, Error> {
        let (backend, order) = (self.backend(), self.order());
        backend.check(Some(&order.settings), watch)?;
        backend.find(MODEL, watch)?;
        backend.deploy(&order, watch)?;
        backend.verify(&order, watch)
    }

    fn asked(&self, request: &str) -> usize {
        self.server.seen().iter().filter(|seen| seen.line.starts_with(request)).count()
    }
}

fn status(code: u16, body: &str) -> Act {
    Act::Status { code, headers: vec![], body: body.into() }
}

/// An error that a person can act on: what was done, and what to do.
fn acted_on(error: &Error) -> String {
    assert!(error.remedy().is_some(), "{error} has no remedy");
    error.to_string()
}

#[test]
fn a_model_is_deployed_verified_and_not_sent_twice() {
    let setting = Setting::new();
    let verified = setting.deploy(&()).unwrap();
    assert_eq!(verified.found.model, MODEL);
    assert_eq!(verified.found.weights, [setting.order().payload.files()[0].sha256]);
    assert_eq!(verified.answer.text, "I");
    let made = setting.server.model(MODEL).unwrap();
    assert_eq!(made.request["template"], "{{ .Prompt }}");
    assert_eq!(setting.server.uploaded_bytes(), 300_000);
    setting.server.forget_seen();
    let again = setting.deploy(&()).unwrap();
    assert_eq!(again.found.digest, verified.found.digest);
    assert_eq!(setting.server.uploaded_bytes(), 0, "it is there");
    assert!(setting.backend().remove(MODEL, &()).unwrap());
    assert!(!setting.backend().remove(MODEL, &()).unwrap());
    assert_eq!(setting.backend().find(MODEL, &()).unwrap(), None);
}

#[test]
fn all_that_a_template_file_says_goes_along() {
    let setting = Setting::new();
    let mut order = setting.order();
    order.settings = ModelSettings {
        template: Some("{{ .System }}{{ .Prompt }}".into()),
        system: Some("Be brief.".into()),
        parameters: serde_json::from_str(r#"{"temperature": 0.5, "stop": ["</s>", "größe"]}"#).unwrap(),
        licenses: vec!["Apache-2.0".into(), "other".into()],
        messages: vec![tenon_deploy::Message { role: "user".into(), content: "hi".into() }],
        renderer: Some("r".into()),
        parser: Some("p".into()),
        requires: Some("0.6.0".into()),
    };
    order.quantize = Some("q4_K_M".into());
    setting.backend().deploy(&order, &()).unwrap();
    let request = setting.server.model(MODEL).unwrap().request;
    for (key, expected) in [
        ("system", r#""Be brief.""#),
        ("parameters", r#"{"temperature":0.5,"stop":["</s>","größe"]}"#),
        ("license", r#"["Apache-2.0","other"]"#),
        ("renderer", r#""r""#),
        ("parser", r#""p""#),
        ("requires", r#""0.6.0""#),
        ("quantize", r#""q4_K_M""#),
    ] {
        assert_eq!(request[key], serde_json::from_str::<serde_json::Value>(expected).unwrap(), "{key}");
    }
    assert_eq!(
        (&request["messages"][0]["role"], &request["messages"][0]["content"]),
        (&"user".into(), &"hi".into())
    );
}

#[test]
fn a_server_that_is_down_or_refuses_connections() {
    let mut setting = Setting::new();
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    setting.environment.url = format!("http://127.0.0.1:{port}");
    let error = setting.deploy(&()).unwrap_err();
    assert!(matches!(&error, Error::Unreachable { reason, .. } if reason.contains("refused")), "{error:?}");
    assert!(acted_on(&error).contains(&port.to_string()));
}

#[test]
fn a_server_that_hangs_at_any_request_ends_it_in_time() {
    for request in REQUESTS {
        for act in [Act::Hang, Act::HangReading(1000)] {
            let setting = Setting::new();
            setting.server.rule(request, None, act);
            let begin = Instant::now();
            let error = setting.deploy(&()).unwrap_err();
            assert!(matches!(error, Error::Hung { .. }), "{request}: {error:?}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{request}");
            acted_on(&error);
        }
    }
}

#[test]
fn a_server_that_is_slow_is_waited_for() {
    let setting = Setting::new();
    for request in ["GET /api/tags", "POST /api/create", "POST /api/generate"] {
        setting.server.rule(request, Some(1), Act::Slow(4));
    }
    setting.deploy(&()).unwrap();
}

#[test]
fn a_server_of_another_kind_or_version() {
    for version in ["0.5.4", "0.1.0", "new", ""] {
        let setting = Setting::new();
        setting.server.set_version(version);
        let error = setting.deploy(&()).unwrap_err();
        assert!(matches!(error, Error::WrongVersion { .. }), "{version}: {error:?}");
        acted_on(&error);
    }
    for act in [status(404, "404 page not found"), Act::Say(vec![b"<html>hello</html>".to_vec()])] {
        let setting = Setting::new();
        setting.server.rule("GET /api/version", None, act);
        let error = setting.deploy(&()).unwrap_err();
        assert!(matches!(error, Error::WrongServer { .. }), "{error:?}");
        acted_on(&error);
    }
    let setting = Setting::new();
    setting.server.set_version("0.6.0");
    let mut order = setting.order();
    order.settings.requires = Some("0.7.0".into());
    let error = setting.backend().check(Some(&order.settings), &()).unwrap_err();
    assert!(error.to_string().contains("requires 0.7.0"), "{error}");
    order.settings = ModelSettings::default();
    let error = setting.backend().check(Some(&order.settings), &()).unwrap_err();
    assert!(matches!(error, Error::NeedsTemplate { .. }), "{error:?}");
}

#[test]
fn refusals_say_what_was_refused_and_why() {
    for (code, refusal) in [
        (401, Refusal::Unauthorized),
        (403, Refusal::Forbidden),
        (413, Refusal::TooLarge),
        (400, Refusal::Invalid),
        (500, Refusal::Fault),
        (503, Refusal::Fault),
        (507, Refusal::NoSpace),
    ] {
        for request in REQUESTS {
            let setting = Setting::new();
            setting.server.rule(request, None, status(code, r#"{"error":"because of that"}"#));
            let error = setting.deploy(&()).unwrap_err();
            match &error {
                Error::Refused { refusal: found, status, .. } => {
                    assert_eq!((*found, *status), (refusal, code), "{request}")
                }
                // Asked for a token: that is how it says that it cannot run the model.
                Error::NoAnswer { .. } => assert_eq!(request, "POST /api/generate"),
                other => panic!("{request} {code}: {other:?}"),
            }
            // To HEAD there is no body.
            let sentence = acted_on(&error);
            assert!(request.starts_with("HEAD") || sentence.contains("because of that"), "{sentence}");
            let may_pass = matches!(code, 500 | 503) && !matches!(error, Error::NoAnswer { .. });
            assert_eq!(setting.asked(request), if may_pass { 3 } else { 1 }, "{request} {code}: retries");
            if !["POST /api/show", "POST /api/generate"].contains(&request) {
                assert_eq!(setting.server.models(), [], "{request} {code}");
            }
        }
    }
}

#[test]
fn a_refusal_before_the_body_is_read_is_heard() {
    for code in [401, 413] {
        let setting = Setting::new();
        setting.server.rule("POST /api/blobs", None, Act::StatusAtOnce { code, body: "too much".into() });
        let mut order = setting.order();
        order.payload = Payload::Gguf(setting.file("large.gguf", 20_000_000));
        let error = setting.backend().deploy(&order, &()).unwrap_err();
        assert!(matches!(error, Error::Refused { status, .. } if status == code), "{error:?}");
    }
}

#[test]
fn what_passes_is_tried_again_and_not_sent_twice() {
    for act in [status(429, ""), status(500, ""), status(502, ""), status(503, ""), Act::CutRequest(0)] {
        for request in REQUESTS {
            let setting = Setting::new();
            setting.server.rule(request, Some(2), act.clone());
            let progress = Progress::default();
            // For a token it is asked once where the server says that it cannot.
            let is_answer = request == "POST /api/generate" && matches!(act, Act::Status { code: 500.., .. });
            if is_answer {
                setting.deploy(&progress).unwrap_err();
                continue;
            }
            setting.deploy(&progress).unwrap();
            assert_eq!(
                progress.advanced.load(Ordering::Relaxed),
                300_000,
                "{request}: told once of each byte"
            );
            assert_eq!(setting.server.models().len(), 1);
        }
    }
}

#[test]
fn retry_after_is_honoured() {
    let setting = Setting::new();
    let wait = |seconds: &str| Act::Status {
        code: 429,
        headers: vec![("retry-after".into(), seconds.into())],
        body: String::new(),
    };
    setting.server.rule("POST /api/create", Some(1), wait("1"));
    let begin = Instant::now();
    setting.deploy(&()).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
    // A server that asks for an hour is not waited for.
    setting.server.rule("POST /api/create", None, wait("3600"));
    let begin = Instant::now();
    let error = setting.deploy(&()).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Busy, .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(1));
    acted_on(&error);
}

#[test]
fn a_connection_cut_at_any_byte_of_an_answer() {
    for request in REQUESTS {
        for at in (0..40).chain((40..400).step_by(23)) {
            let setting = Setting::new();
            setting.server.rule(request, Some(1), Act::CutAnswer(at));
            setting.deploy(&()).unwrap_or_else(|e| panic!("{request} cut at {at}: {e}"));
        }
    }
    // And again each time.
    for request in ["GET /api/tags", "POST /api/create", "POST /api/generate"] {
        let setting = Setting::new();
        setting.server.rule(request, None, Act::CutAnswer(9));
        let error = setting.deploy(&()).unwrap_err();
        assert!(matches!(error, Error::Cut { .. }), "{request}: {error:?}");
        acted_on(&error);
    }
}

#[test]
fn a_connection_cut_at_any_byte_of_an_upload() {
    for at in [0, 1, 1000, 65_536, 262_143, 262_144, 262_145, 299_999] {
        let setting = Setting::new();
        setting.server.rule("POST /api/blobs", Some(1), Act::CutRequest(at));
        let progress = Progress::default();
        setting.deploy(&progress).unwrap_or_else(|e| panic!("cut at {at}: {e}"));
        assert_eq!(progress.advanced.load(Ordering::Relaxed), 300_000);
        setting.server.rule("POST /api/blobs", None, Act::CutRequest(at));
        let mut order = setting.order();
        order.payload = Payload::Gguf(setting.file("other.gguf", 300_001));
        let error = setting.backend().deploy(&order, &()).unwrap_err();
        assert!(matches!(error, Error::Cut { .. } | Error::Unreachable { .. }), "{error:?}");
        acted_on(&error);
    }
}

#[test]
fn the_stream_in_any_pieces() {
    for bytes in [1, 2, 3, 7, 64, 100_000] {
        let setting = Setting::new();
        setting.server.rule("POST /api/create", None, Act::Split(bytes));
        setting.deploy(&()).unwrap_or_else(|e| panic!("pieces of {bytes}: {e}"));
    }
}

#[test]
fn a_stream_that_lies() {
    let piece = |text: &str| text.as_bytes().to_vec();
    let ok = piece("{\"status\":\"success\"}\n");
    for (act, word) in [
        // The model is not there.
        (Act::Say(vec![ok.clone()]), "does not list"),
        (Act::Say(vec![piece("{\"status\":\"a\"}{\"status\":\"success\"}")]), "does not list"),
        (Act::Say(vec![piece("<html>")]), "no word of success"),
        (Act::Say(vec![piece("<html>\n")]), "no JSON"),
        (Act::Say(vec![piece("\u{0}\u{1}\n")]), "no JSON"),
        (Act::Say(vec![piece("[1]\n")]), "an object was expected"),
        (Act::Say(vec![vec![0xff, 0xfe, b'\n']]), "no JSON"),
        (Act::Say(vec![vec![b' '; 2_000_000]]), "longer than"),
        (Act::Say(vec![piece("{\"status\":\"success\"}\n{\"status\":\"and\"}\n")]), "no word of success"),
        (Act::Say(vec![piece("{\"status\":\"writing manifest\"}\n")]), "\"writing manifest\""),
        (Act::Swallow, "no word of success"),
        (
            Act::Say(vec![piece("{\"error\":\"quantization failed: gr\u{f6}\u{df}e\"}\n")]),
            "quantization failed: größe",
        ),
        (Act::Say(vec![piece("{\"error\":{\"code\":7}}\n")]), "{\"code\":7}"),
        (Act::Add(vec![piece("{\"error\":\"and then the disk died\"}\n")]), "and then the disk died"),
        (Act::Add(vec![piece("{\"error\":\"no newline\"}")]), "no newline"),
        (Act::Say(vec![piece("{\"error\":\"write blob: no space left on device\"}\n")]), "no space left"),
    ] {
        let setting = Setting::new();
        setting.server.rule("POST /api/create", None, act.clone());
        let error = setting.deploy(&()).unwrap_err();
        let sentence = acted_on(&error);
        assert!(sentence.contains(word), "{act:?}: {sentence}");
    }
}

#[test]
fn answers_that_are_garbage_or_without_end() {
    for request in ["GET /api/tags", "POST /api/show", "POST /api/generate", "POST /api/create"] {
        for bytes in [b"\xff\xff".to_vec(), b"{".to_vec(), vec![b'{'; 100], vec![b'['; 20_000_000]] {
            let setting = Setting::new();
            setting.server.rule(request, None, Act::Say(vec![bytes]));
            let error = setting.deploy(&()).unwrap_err();
            assert!(
                matches!(error, Error::Garbage { .. } | Error::NoAnswer { .. } | Error::Cut { .. }),
                "{request}: {error:?}"
            );
            acted_on(&error);
        }
    }
    let setting = Setting::new();
    for answer in [r#"{"done":true,"response":"","eval_count":0}"#, r#"{"done":false}"#, "{}"] {
        setting.server.rule("POST /api/generate", Some(1), Act::Say(vec![answer.into()]));
        let error = setting.deploy(&()).unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{answer}: {error:?}");
    }
}

#[test]
fn redirects_are_told_not_followed() {
    let other = StandIn::start().unwrap();
    for request in REQUESTS {
        let setting = Setting::new();
        let headers = vec![("location".into(), format!("{}/api/version", other.url()))];
        setting.server.rule(request, None, Act::Status { code: 307, headers, body: String::new() });
        let error = setting.deploy(&()).unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{request}: {error:?}");
        assert!(acted_on(&error).contains(&other.url()));
    }
    assert_eq!(other.seen(), []);
}

#[test]
fn a_server_that_does_not_speak_tls() {
    let mut setting = Setting::new();
    setting.environment.url = setting.server.url().replace("http:", "https:");
    let error = setting.deploy(&()).unwrap_err();
    assert!(matches!(error, Error::Tls { .. } | Error::Hung { .. }), "{error:?}");
    acted_on(&error);
    setting.environment.ca = Some(setting.file("ca.pem", 100).path);
    assert!(matches!(backend(&setting.environment), Err(Error::Certificates { .. })));
}

#[test]
fn a_full_disk_there_is_named_and_not_tried_again() {
    let setting = Setting::new();
    let full = r#"{"error":"write /models/blobs/sha256-1: no space left on device"}"#;
    setting.server.rule("POST /api/blobs", None, status(500, full));
    let error = setting.deploy(&()).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::NoSpace, .. }), "{error:?}");
    assert!(error.remedy().unwrap().contains("disk is full"));
    assert_eq!(setting.asked("POST /api/blobs"), 1);
}

#[test]
fn names_and_templates_that_the_server_refuses() {
    let setting = Setting::new();
    let mut order = setting.order();
    order.model = "a b".into();
    let error = setting.backend().deploy(&order, &()).unwrap_err();
    assert!(error.to_string().contains("invalid model name"), "{error}");
    let mut order = setting.order();
    order.settings.template = Some("{{ .Prompt".into());
    let error = setting.backend().deploy(&order, &()).unwrap_err();
    assert!(error.to_string().contains("template error"), "{error}");
    assert_eq!(setting.server.models(), []);
    assert!(matches!(setting.backend().model_name("a b", true), Err(Error::BadModelName { .. })));
    assert_eq!(setting.backend().model_name("a b", false).unwrap(), "a-b:latest");
}

#[test]
fn files_that_are_not_what_they_were() {
    let setting = Setting::new();
    let order = setting.order();
    let path = order.payload.files()[0].path.clone();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[17] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = setting.backend().deploy(&order, &()).unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error:?}");
    std::fs::write(&path, &bytes[..1000]).unwrap();
    let error = setting.backend().deploy(&order, &()).unwrap_err();
    assert!(matches!(error, Error::FileChanged { found: 1000, .. }), "{error:?}");
    std::fs::remove_file(&path).unwrap();
    let error = setting.backend().deploy(&order, &()).unwrap_err();
    assert!(error.to_string().contains("model.gguf"), "{error}");
    assert_eq!(setting.server.models(), []);
}

#[test]
fn a_server_that_writes_the_weights_anew_says_so() {
    let setting = Setting::new();
    let line = format!("{{\"status\":\"using existing layer sha256:{}\"}}\n", Digest::of(b"somebody else's"));
    setting.deploy(&()).unwrap();
    setting.server.tamper(MODEL);
    // As told while it was made: that is the model.
    let (backend, order) = (setting.backend(), setting.order());
    setting.server.rule(
        "POST /api/create",
        Some(1),
        Act::Say(vec![(line + "{\"status\":\"success\"}\n").into()]),
    );
    backend.deploy(&order, &()).unwrap();
    let verified = backend.verify(&order, &()).unwrap();
    // Known from then.
    let order = Order { made_before: verified.found.weights, ..order };
    setting.backend().verify(&order, &()).unwrap();
}

#[test]
fn another_model_under_the_name_is_seen() {
    let setting = Setting::new();
    setting.deploy(&()).unwrap();
    setting.server.tamper(MODEL);
    let error = setting.backend().verify(&setting.order(), &()).unwrap_err();
    assert!(matches!(error, Error::Differs { .. }), "{error:?}");
    acted_on(&error);
    let mut order = setting.order();
    order.settings.template = Some("{{ .Prompt }} ".into());
    setting.backend().deploy(&order, &()).unwrap();
    let error = setting.backend().verify(&setting.order(), &()).unwrap_err();
    assert!(error.to_string().contains("template"), "{error}");
}

#[test]
fn several_files_go_side_by_side_each_once() {
    let setting = Setting::new().option("uploads", "3");
    let mut files: Vec<_> =
        (0..5).map(|n| setting.file(&format!("model-{n}.safetensors"), 100_000 + n)).collect();
    let twin = SourceFile { name: "twin.safetensors".into(), ..files[0].clone() };
    files.push(twin);
    let mut order = setting.order();
    order.payload = Payload::Directory { dir: setting.dir.path().into(), files };
    let progress = Progress::default();
    setting.backend().deploy(&order, &progress).unwrap();
    assert_eq!(setting.server.uploaded_bytes(), 500_010);
    assert_eq!(progress.advanced.load(Ordering::Relaxed), 600_010);
    assert_eq!(progress.sent.load(Ordering::Relaxed), 500_010);
    assert_eq!(setting.server.model(MODEL).unwrap().request["files"].as_object().unwrap().len(), 6);
    setting.backend().verify(&order, &()).unwrap();
}

#[test]
fn uploads_keep_to_the_rate() {
    let setting = Setting::new().option("max-upload-rate", "600000");
    let begin = Instant::now();
    setting.backend().deploy(&setting.order(), &()).unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    // The first chunk goes at once, the second when the first is paid for.
    assert!(seconds > 0.4, "{seconds} s for half a second's worth");
}

#[test]
fn somebody_who_asks_to_stop_is_heard_at_every_request() {
    for request in REQUESTS {
        let mut setting = Setting::new();
        setting.environment.timeout_seconds = 60.0;
        for option in ["create-timeout", "load-timeout"] {
            setting.environment.options.insert(option.into(), "60".into());
        }
        setting.server.rule(request, None, Act::Hang);
        let begin = Instant::now();
        let error = setting.deploy(&Until(begin + Duration::from_millis(300))).unwrap_err();
        assert!(error.is_cancelled(), "{request}: {error:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{request}: {:?}", begin.elapsed());
    }
    // And while it waits for a retry.
    let setting = Setting::new().option("retry-delay", "60");
    setting.server.rule("GET /api/version", None, status(503, ""));
    let begin = Instant::now();
    assert!(setting.deploy(&Until(begin + Duration::from_millis(100))).unwrap_err().is_cancelled());
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn the_key_goes_to_the_server_and_nowhere_else() {
    let mut setting = Setting::new();
    let file: PathBuf = setting.dir.path().join("key");
    std::fs::write(&file, "hunter2\n").unwrap();
    setting.environment.key = Some(KeySource::File(file));
    setting.server.want_key("hunter2");
    setting.deploy(&()).unwrap();
    assert!(setting.server.seen().iter().all(|seen| seen.authorization.as_deref() == Some("Bearer hunter2")));
    // What echoes it is not passed on.
    let progress = Progress::default();
    setting.server.rule("GET /api/version", None, status(401, r#"{"error":"bad key hunter2"}"#));
    let error = setting.deploy(&progress).unwrap_err();
    assert!(
        error.to_string().contains("bad key ***") && !format!("{error:?}").contains("hunter2"),
        "{error:?}"
    );
    setting.server.behave();
    let line = b"{\"status\":\"hello hunter2\"}\n{\"error\":\"hunter2\"}\n".to_vec();
    setting.server.rule("POST /api/create", None, Act::Say(vec![line]));
    let error = setting.deploy(&progress).unwrap_err();
    assert!(!format!("{error:?}{:?}", progress.said).contains("hunter2"));
    // Without it.
    setting.server.behave();
    setting.environment.key = None;
    let error = setting.deploy(&()).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Unauthorized, .. }), "{error:?}");
    assert!(error.remedy().unwrap().contains("--api-key-env"));
}

#[test]
fn a_rule_may_wait_for_its_request() {
    let setting = Setting::new();
    // The second time it is asked for a list, which is when it is verified.
    setting.server.add_rule(Rule { on: "GET /api/tags".into(), after: 2, times: None, act: status(403, "") });
    let error = setting.deploy(&()).unwrap_err();
    assert!(matches!(error, Error::Refused { refusal: Refusal::Forbidden, .. }), "{error:?}");
    assert_eq!(setting.server.models().len(), 1, "made, but not seen to answer");
}

#[derive(Default)]
struct Progress {
    advanced: AtomicU64,
    sent: AtomicU64,
    said: Mutex<Vec<String>>,
}

impl Watch for Progress {
    fn advanced(&self, bytes: u64, sent: u64) {
        self.advanced.fetch_add(bytes, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    fn said(&self, line: &str) {
        self.said.lock().unwrap().push(line.into());
    }
}

struct Until(Instant);

impl Watch for Until {
    fn cancelled(&self) -> bool {
        Instant::now() > self.0
    }
}
