//! Servers other than Ollama, from end to end: deployed to, checked, removed from, and what a failure leaves.

use std::os::unix::fs::PermissionsExt;

use tenon_standin::served::{Server, completion};

use super::*;

/// A home whose environment `env` is a server of another kind, with a directory that both see.
struct Setting {
    home: Home,
    /// Where models are put.
    there: PathBuf,
    /// What the server serves: names, put there by the commands.
    served: PathBuf,
}

impl Setting {
    fn new(kind: &str, server: impl Fn(&Path, &Path) -> Server, options: &[&str]) -> (Self, Server) {
        let home = Home::new("http://127.0.0.1:1");
        home.ok(&["env", "remove", "env"]);
        let (there, served) = (home.dir.path().join("there"), home.dir.path().join("served"));
        std::fs::create_dir(&there).unwrap();
        std::fs::create_dir(&served).unwrap();
        let server = server(&there, &served);
        let models_dir = format!("models-dir={}", there.display());
        let mut arguments = vec!["env", "add", "env", "--kind", kind, "--url", &server.url, "--timeout", "5"];
        for option in [models_dir.as_str(), "retry-delay=0.01", "retries=1", "load-timeout=5"] {
            arguments.extend(["--option", option]);
        }
        let filled: Vec<_> =
            options.iter().map(|option| option.replace("SERVED", &served.display().to_string())).collect();
        filled.iter().for_each(|option| arguments.extend(["--option", option.as_str()]));
        home.ok(&arguments);
        (Self { home, there, served }, server)
    }

    fn deploy(&self, quantization: &str) -> Vec<String> {
        let arguments =
            ["deploy", &self.home.model, "--env", "env", "--quantization", quantization, "--as", "m"];
        arguments.map(str::to_string).to_vec()
    }

    /// Names in the shared directory.
    fn placed(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.there).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Live, checked, gone from the environment, checked, removed.
    fn life(&self, quantization: &str, go_missing: impl Fn(&Self)) {
        let home = &self.home;
        let deploy = self.deploy(quantization);
        let deploy: Vec<_> = deploy.iter().map(String::as_str).chain(["--json"]).collect();
        let live = home.json(&deploy);
        assert_eq!(live["state"], "live");
        assert_eq!(home.json(&["live", "check", "m", "--json"])["condition"], "live");
        assert_eq!(home.json(&deploy)["sent_bytes"], 0, "the same again sends nothing");
        home.ok(&["live", "remove", "m", "--from-environment"]);
        assert_eq!((home.live().len(), self.placed().len()), (0, 0), "{:?}", self.placed());

        home.json(&deploy);
        go_missing(self);
        let output = home.run(&["live", "check", "m", "--json"]);
        let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (output.status.code(), &checked["condition"]),
            (Some(6), &"missing".into()),
            "{checked:#}"
        );
        home.ok(&["live", "remove", "m"]);
        assert_eq!(home.live().len(), 0);
    }
}

const COMMANDS: [&str; 2] = ["start-command=touch SERVED/{model}", "stop-command=rm -f SERVED/{model}"];

#[test]
fn a_llama_server_that_routes() {
    let (setting, server) = Setting::new("llama-server", |there, _| Server::router(there), &[]);
    let tested = setting.home.json(&["env", "test", "env", "--json"]);
    assert_eq!(tested["capabilities"]["gguf"], true);
    setting.life("q4_K_M", |setting| std::fs::remove_file(setting.there.join("m.gguf")).unwrap());
    assert!(server.seen.lock().unwrap().iter().any(|request| request == "POST /models/load"));
    // Quantized by Tenon, and the cost of that is known.
    let deploy = setting.deploy("q8_0");
    let deploy: Vec<_> = deploy.iter().map(String::as_str).chain(["--json"]).collect();
    assert!(setting.home.json(&deploy)["quality"]["relative_error"].as_f64().unwrap() > 0.0);
}

#[test]
fn vllm_and_others_that_commands_start() {
    for (kind, by_path) in [("vllm", false), ("openai", true)] {
        let listing = |_: &Path, served: &Path| Server::listing(served, completion("I"));
        let (setting, _server) = Setting::new(kind, listing, &COMMANDS);
        if by_path {
            std::fs::write(setting.served.join(".by-path"), "").unwrap();
        }
        setting.life("no_quantization", |setting| std::fs::remove_file(setting.served.join("m")).unwrap());
        let deploy = setting.deploy("q4_K_M");
        let deploy: Vec<_> = deploy.iter().map(String::as_str).collect();
        let (code, error) = setting.home.fails(&deploy);
        assert!(code != 0 && error.contains("no_quantization"), "{error}");
        // People are told what to call it, and Tenon finds it by the name that it was given.
        let deploy = setting.deploy("no_quantization");
        setting.home.ok(&deploy.iter().map(String::as_str).collect::<Vec<_>>());
        let shown = setting.home.ok(&["live", "show", "env/m"]);
        assert_eq!(shown.contains("the server calls it /models/m"), by_path, "{shown}");
    }
}

#[test]
fn a_server_that_lists_nothing() {
    let pinned = |_: &Path, served: &Path| Server::pinned(&served.join("m"));
    let options = [
        "served-name={path}",
        "start-command=sh -c 'printf %s \"$0\" > SERVED/m' {path}",
        "stop-command=rm -f SERVED/m",
    ];
    let (setting, _server) = Setting::new("openai", pinned, &options);
    setting.life("no_quantization", |setting| std::fs::write(setting.served.join("m"), "/other").unwrap());
}

#[test]
fn what_a_failure_leaves_is_taken_away_or_told_in_the_words_of_its_kind() {
    let listing = |_: &Path, served: &Path| Server::listing(served, completion("I"));
    // The files are there, and nobody serves them.
    let failing = ["start-command=sh -c 'echo no GPU >&2; exit 3'", "stop-command=rm -f SERVED/{model}"];
    let (setting, _server) = Setting::new("vllm", listing, &failing);
    let deploy = setting.deploy("no_quantization");
    let deploy: Vec<_> = deploy.iter().map(String::as_str).collect();
    let (code, error) = setting.home.fails(&deploy);
    assert!(code != 0 && error.contains("no GPU") && !error.contains("Ollama"), "{error}");
    let job = setting.home.deployments().remove(0);
    assert!(job["sent_bytes"].as_u64().unwrap() > 0 && job.get("left_there").is_none(), "{job:#}");
    assert_eq!(setting.placed(), [""; 0]);
    // The same where they cannot be taken away.
    let stuck = ["start-command=sh -c 'exit 3'", "stop-command=sh -c 'exit 4'"];
    let (setting, _server) = Setting::new("vllm", listing, &stuck);
    let deploy = setting.deploy("no_quantization");
    let deploy: Vec<_> = deploy.iter().map(String::as_str).collect();
    setting.home.fails(&deploy);
    let job = setting.home.deployments().remove(0);
    let left = job["left_there"].to_string();
    assert!(left.contains("bytes of files in") && left.contains("perhaps the model m"), "{job:#}");
    assert!(!left.contains("Ollama"), "{left}");
    assert_eq!(setting.home.live().len(), 0);
}

#[test]
fn a_server_that_is_down_is_unreachable_and_not_missing() {
    let home = Home::new("http://127.0.0.1:1");
    let dir = home.dir.path().join("there");
    std::fs::create_dir(&dir).unwrap();
    let script = home.dir.path().join("start.sh");
    std::fs::write(&script, "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (models_dir, start) =
        (format!("models-dir={}", dir.display()), format!("start-command={}", script.display()));
    home.ok(&[
        "env",
        "add",
        "gpu",
        "--kind",
        "vllm",
        "--url",
        "http://127.0.0.1:1",
        "--option",
        &models_dir,
        "--option",
        &start,
        "--option",
        "load-timeout=1",
        "--option",
        "retries=0",
    ]);
    let tested = home.json(&["env", "test", "gpu", "--json"]);
    assert_eq!(tested["condition"]["not_running"], true);
    let (_, error) =
        home.fails(&["deploy", &home.model, "--env", "gpu", "--quantization", "no_quantization"]);
    assert!(error.contains("cannot be reached") && error.contains("hint:"), "{error}");
    let job = home.deployments().remove(0);
    assert_eq!(job["state"], "failed");
    assert!(job.get("left_there").is_none(), "{job:#}");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
}

#[test]
fn an_adapter_goes_to_vllm_as_one() {
    let listing = |_: &Path, served: &Path| Server::listing(served, completion("I"));
    let (setting, server) = Setting::new("vllm", listing, &[]);
    std::fs::write(setting.served.join("base"), "").unwrap();
    let home = &setting.home;
    let customized = home.json(&["customized", "list", "--json"])[0]["name"].as_str().unwrap().to_string();
    let deploy = |more: &[&str]| -> Vec<String> {
        let common = ["deploy", &customized, "--env", "env", "--as-adapter"];
        common.iter().chain(more).map(|word| word.to_string()).collect()
    };
    fn words(arguments: &[String]) -> Vec<&str> {
        arguments.iter().map(String::as_str).collect()
    }
    let plain = deploy(&["--quantization", "no_quantization", "--as", "m", "--json"]);
    let planned = deploy(&["--quantization", "no_quantization", "--dry-run", "--json"]);
    assert_eq!(home.json(&words(&planned))["sends"], "adapter");
    let before = home.json(&["list", "--json"]);
    let live = home.json(&words(&plain));
    assert_eq!((&live["state"], &live["model"]), (&"live".into(), &"m".into()));
    assert!(live.get("complete").is_none() && live["customized"] == customized.as_str(), "{live:#}");
    assert_eq!(home.json(&["list", "--json"]), before, "nothing was saved");
    let bytes = live["bytes"].as_u64().unwrap();
    let weights =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(ADAPTER).join("adapter_model.safetensors");
    assert!(bytes < weights.metadata().unwrap().len() + 10_000, "the adapter alone");
    assert_eq!(home.json(&["live", "check", "m", "--json"])["condition"], "live");
    assert!(home.ok(&["live", "show", "m"]).contains(&format!("adapter of    {customized}")));
    assert!(home.ok(&["live", "list"]).contains(&format!("adapter of {customized}")));
    home.ok(&["live", "remove", "m", "--from-environment"]);
    assert!(server.seen.lock().unwrap().iter().any(|request| request == "POST /v1/unload_lora_adapter"));
    assert_eq!(setting.placed(), [""; 0]);
    // What cannot be is said beforehand.
    for (arguments, word) in [
        (deploy(&["--quantization", "q8_0"]), "to the base that it serves"),
        (
            ["deploy", &home.model, "--env", "env", "--as-adapter", "--quantization", "no_quantization"]
                .map(str::to_string)
                .to_vec(),
            "it is a Complete Model",
        ),
    ] {
        let (code, error) = home.fails(&words(&arguments));
        assert!(code != 0 && error.contains(word), "{error}");
    }
    // A server that loads none.
    std::fs::remove_file(setting.served.join("base")).unwrap();
    let (_, error) = home.fails(&words(&plain));
    assert!(error.contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING"), "{error}");
    assert_eq!((home.live().len(), setting.placed().len()), (0, 0));
}

#[test]
fn an_adapter_goes_to_ollama_with_its_base() {
    let (url, server) = super::commands::server();
    let home = Home::new(&url);
    let customized = home.json(&["customized", "list", "--json"])[0]["name"].as_str().unwrap().to_string();
    let arguments = |quantization, more: &[&'static str]| -> Vec<String> {
        let common = [
            "deploy",
            &customized,
            "--env",
            "env",
            "--as-adapter",
            "--as",
            "adapted",
            "--quantization",
            quantization,
        ];
        common.iter().chain(more).map(|word| word.to_string()).collect()
    };
    let run = |arguments: Vec<String>| home.json(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let live = run(arguments("no_quantization", &["--json"]));
    assert_eq!(live["state"], "live");
    // As the merged model, to the end: the adapter is applied to all that it was trained for.
    let answers = || {
        if server.is_none() {
            assert_eq!(super::commands::answer(&url, "adapted").trim(), super::commands::SENTENCE);
        }
    };
    answers();
    if let Some(server) = &server {
        let request = server.model("adapted:latest").unwrap().request;
        let digests = |field: &str| {
            let files = request[field].as_object().unwrap();
            files.values().map(|d| d.as_str().unwrap().replace("sha256:", "")).collect::<Vec<_>>()
        };
        assert_eq!(live["weights"], serde_json::json!([digests("files"), digests("adapters")].concat()));
        assert_eq!(server.uploaded_bytes(), live["bytes"].as_u64().unwrap());
    }
    assert_eq!(run(arguments("no_quantization", &["--json"]))["sent_bytes"], 0);
    home.ok(&["live", "check", "adapted"]);
    // The base quantized: by the server, and by Tenon.
    assert_eq!(run(arguments("q8_0", &["--quantize-on", "server", "--json"]))["quantization"], "q8_0");
    for quantization in ["q8_0", "q4_K_M"] {
        let live = run(arguments(quantization, &["--json"]));
        assert!(live["quality"]["relative_error"].as_f64().unwrap() > 0.0, "{live:#}");
        answers();
    }
    home.ok(&["live", "remove", "adapted", "--from-environment"]);
}

/// `TENON_TEST_LLAMA_SERVER=URL` of a real one that routes over `TENON_TEST_LLAMA_MODELS_DIR`, and was started
/// with `--models-preset` as `TENON_TEST_LLAMA_PRESET` says.
#[test]
fn an_adapter_goes_to_a_llama_server_with_its_base() {
    let real = std::env::var("TENON_TEST_LLAMA_PRESET").ok();
    let home = Home::new("http://127.0.0.1:1");
    let (there, presets) = match &real {
        Some(preset) => (PathBuf::from(std::env::var("TENON_TEST_LLAMA_MODELS_DIR").unwrap()), preset.into()),
        None => (home.dir.path().join("there"), home.dir.path().join("models.ini")),
    };
    std::fs::create_dir_all(&there).unwrap();
    let server = Server::router_with(&there, Some(&presets));
    let url = match real {
        Some(_) => std::env::var("TENON_TEST_LLAMA_SERVER").unwrap(),
        None => server.url.clone(),
    };
    let (dir, preset) =
        (format!("models-dir={}", there.display()), format!("models-preset={}", presets.display()));
    let customized = home.json(&["customized", "list", "--json"])[0]["name"].as_str().unwrap().to_string();
    let common = ["env", "add", "llama", "--kind", "llama-server", "--url", &url, "--option", &dir];
    home.ok(&common);
    let deploy = |quantization: &str| {
        let words = ["deploy", &customized, "--env", "llama", "--as-adapter", "--as", "adapted", "--json"];
        words.iter().chain(&["--quantization", quantization]).map(|word| word.to_string()).collect::<Vec<_>>()
    };
    let words = |words: &[String]| words.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let run = |arguments: Vec<String>| home.json(&words(&arguments).split('\n').collect::<Vec<_>>());
    let (_, error) = home.fails(&words(&deploy("q8_0")).split('\n').collect::<Vec<_>>());
    assert!(error.contains("models-preset=FILE"), "{error}");
    home.ok(&["env", "remove", "llama"]);
    home.ok(&[&common[..], &["--option", &preset]].concat());
    for quantization in ["no_quantization", "q4_K_M"] {
        let live = run(deploy(quantization));
        assert_eq!((&live["state"], &live["quantization"]), (&"live".into(), &quantization.into()));
        assert_eq!(live["weights"].as_array().unwrap().len(), 2, "{live:#}");
        assert_eq!(run(deploy(quantization))["sent_bytes"], 0);
        assert_eq!(home.json(&["live", "check", "adapted", "--json"])["condition"], "live");
        if real.is_some() {
            assert_eq!(super::commands::completion(&url, "adapted").trim(), super::commands::SENTENCE);
        }
    }
    home.ok(&["live", "remove", "adapted", "--from-environment"]);
    assert!(
        !std::fs::read_to_string(&presets).unwrap().contains("adapted") && !there.join("adapted").exists()
    );
    // What was made of base and adapter goes with them.
    let artifacts = || std::fs::read_dir(home.path("artifacts")).unwrap().count();
    assert_eq!(artifacts(), 2);
    home.ok(&["customized", "remove", &customized]);
    assert_eq!(artifacts(), 1);
    home.ok(&["base", "remove", "base"]);
    assert_eq!(artifacts(), 0);
}

#[test]
fn what_is_no_plain_lora_is_refused_as_an_adapter() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    let added =
        home.json(&["customized", "add", "fixtures/kjv-llama/adapter-dora", "--base", "base", "--json"]);
    let name = added["name"].as_str().unwrap();
    let (code, error) =
        home.fails(&["deploy", name, "--env", "env", "--as-adapter", "--quantization", "no_quantization"]);
    assert!(code != 0 && error.contains("DoRA") && error.contains("saved first"), "{error}");
    assert_eq!(server.seen(), [], "nobody was asked");
    // A kind that loads none.
    home.ok(&["env", "add", "other", "--kind", "openai", "--url", "http://127.0.0.1:1"]);
    let customized = home.json(&["customized", "list", "--json"])[0]["name"].as_str().unwrap().to_string();
    let (_, error) = home.fails(&[
        "deploy",
        &customized,
        "--env",
        "other",
        "--as-adapter",
        "--quantization",
        "no_quantization",
    ]);
    assert!(error.contains("its API loads none"), "{error}");
}

#[test]
fn a_server_behind_tls_with_an_authority_of_ones_own() {
    use tenon_standin::{Certificate, Tls};
    let server = StandIn::start().unwrap();
    let tls = Tls::before(&server.url(), Certificate::Good).unwrap();
    let home = Home::new(&server.url());
    let ca = home.dir.path().join("ca.pem");
    std::fs::write(&ca, tls.authority()).unwrap();
    home.ok(&["env", "add", "plain", "--kind", "ollama", "--url", &tls.url()]);
    let (code, error) = home.fails(&["env", "test", "plain"]);
    assert!(code != 0 && error.contains("nobody who is trusted here") && error.contains("--ca"), "{error}");
    home.ok(&["env", "add", "safe", "--kind", "ollama", "--url", &tls.url(), "--ca", ca.to_str().unwrap()]);
    home.ok(&["env", "test", "safe"]);
    let live =
        home.json(&["deploy", &home.model, "--env", "safe", "--quantization", "q8_0", "--as", "m", "--json"]);
    assert_eq!(live["state"], "live");
    assert_eq!(server.uploaded_bytes(), live["bytes"].as_u64().unwrap());
}
