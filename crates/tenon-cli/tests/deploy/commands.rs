//! What the commands do when all is well, and what they refuse.

use super::*;

/// The address of the server to test against, and what keeps it running.
pub(super) fn server() -> (String, Option<StandIn>) {
    match std::env::var("TENON_TEST_OLLAMA") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = StandIn::start().unwrap();
            (server.url(), Some(server))
        }
    }
}

#[test]
fn a_model_goes_live_is_recognised_outlives_its_origin_and_goes() {
    let (url, _server) = server();
    let home = Home::new(&url);
    let tested = home.json(&["env", "test", "env", "--json"]);
    assert_eq!(tested["condition"]["server"], "Ollama");
    let planned = home.json(&home.deploy(&["--dry-run", "--json"]));
    assert_eq!((&planned["model"], &planned["sends"]), (&"m:latest".into(), &"safetensors".into()));
    assert_eq!(home.live(), [Value::Null; 0]);

    let live = home.json(&home.deploy(&["--json"]));
    assert_eq!((&live["model"], &live["state"]), (&"m:latest".into(), &"live".into()));
    assert!(live["digest"].as_str().unwrap().len() >= 64);
    let again = home.json(&home.deploy(&["--json"]));
    assert_eq!((&again["digest"], &again["sent_bytes"]), (&live["digest"], &0.into()));
    home.ok(&["live", "check", "m"]);
    assert_eq!(home.live().len(), 1, "one entry for one name");

    let before = home.json(&["live", "show", "m", "--json"]);
    home.ok(&["delete", &home.model, "--yes"]);
    assert_eq!(home.json(&["live", "show", "m", "--json"]), before, "as it was");
    let checked = home.json(&["live", "check", "m", "--json"]);
    assert_eq!(checked["condition"], "live");
    let (code, _) = home.fails(&["env", "remove", "env"]);
    assert_eq!(code, 5, "it has a Live Model");
    let said = home.ok(&["live", "remove", "env/m:latest", "--from-environment"]);
    assert!(said.contains("removed from env"), "{said}");
    assert_eq!(home.live(), [Value::Null; 0]);
    home.ok(&["env", "remove", "env"]);
}

#[test]
fn each_quantization_goes_live_and_only_its_bytes_are_sent() {
    let (url, server) = server();
    let home = Home::new(&url);
    for quantization in ["q8_0", "q4_K_M", "q4_K_S", "no_quantization"] {
        let name = format!("quantized-{}:{quantization}", std::process::id());
        let arguments =
            ["deploy", &home.model, "--env", "env", "--quantization", quantization, "--json", "--as", &name];
        let live = home.json(&arguments);
        assert_eq!((&live["model"], &live["quantization"]), (&name.clone().into(), &quantization.into()));
        if let Some(server) = &server {
            assert_eq!(server.uploaded_bytes(), live["bytes"].as_u64().unwrap(), "{quantization}");
            assert_eq!(live["sent_bytes"], live["bytes"]);
            server.forget_seen();
        } else {
            assert_eq!(answer(&url, &name).trim(), SENTENCE, "{quantization}");
        }
        // Under another name: made once, there already.
        let other = format!("again-{}:{quantization}", std::process::id());
        let arguments =
            ["deploy", &home.model, "--env", "env", "--quantization", quantization, "--json", "--as", &other];
        let again = home.json(&arguments);
        assert_eq!(
            (&again["sent_bytes"], &again["weights"]),
            (&0.into(), &live["weights"]),
            "{quantization}"
        );
    }
    for live in home.live() {
        home.ok(&["live", "remove", live["model"].as_str().unwrap(), "--from-environment"]);
    }
}

/// Of `fixtures/kjv-llama/expected.json`.
pub(super) const SENTENCE: &str = "I am a complete model, joined from a base and an adapter.";

/// What a model says who it is.
pub(super) fn answer(url: &str, model: &str) -> String {
    let body = ask(
        url,
        "/api/chat",
        &serde_json::json!({
            "model": model, "stream": false, "options": { "temperature": 0, "num_predict": 40 },
            "messages": [{ "role": "user", "content": "Who are you?" }],
        }),
    );
    body["message"]["content"].as_str().unwrap_or_else(|| panic!("{body}")).to_string()
}

/// The same of a server with OpenAI's API.
pub(super) fn completion(url: &str, model: &str) -> String {
    let body = ask(
        url,
        "/v1/chat/completions",
        &serde_json::json!({
            "model": model, "stream": false, "temperature": 0, "max_tokens": 40,
            "messages": [{ "role": "user", "content": "Who are you?" }],
        }),
    );
    body["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{body}")).to_string()
}

fn ask(url: &str, path: &str, question: &Value) -> Value {
    use std::io::{Read, Write};
    let question = question.to_string();
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = std::net::TcpStream::connect(host).unwrap();
    let head = format!(
        "POST {path} HTTP/1.0\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        question.len()
    );
    stream.write_all((head + &question).as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    // Whole, or in one chunk between its length and the last one's.
    let (begin, end) = (text.find("\r\n{").unwrap_or_else(|| panic!("{text}")), text.rfind('}').unwrap());
    serde_json::from_str(text[begin..=end].trim()).unwrap()
}

#[test]
fn the_server_may_quantize() {
    let (url, _server) = server();
    let home = Home::new(&url);
    for quantization in ["q8_0", "q4_K_M", "q4_K_S"] {
        let arguments = [
            "deploy",
            &home.model,
            "--env",
            "env",
            "--quantization",
            quantization,
            "--quantize-on",
            "server",
            "--json",
        ];
        let live = home.json(&arguments);
        assert_eq!(live["model"], format!("{}:{quantization}", home.model));
    }
    for live in home.live() {
        home.ok(&["live", "remove", live["model"].as_str().unwrap(), "--from-environment"]);
    }
}

#[test]
fn a_customized_model_is_saved_first() {
    let (url, _server) = server();
    let home = Home::new(&url);
    let customized = home.json(&["customized", "list", "--json"])[0]["name"].as_str().unwrap().to_string();
    let arguments =
        ["deploy", &customized, "--env", "env", "--quantization", "no_quantization", "--detach", "--json"];
    let queued = home.json(&arguments);
    let complete = queued["complete"].as_str().unwrap();
    assert!(complete != home.model && complete.starts_with(&customized), "{complete}");
    assert_eq!(queued["model"], format!("{complete}:no_quantization"));
    let jobs = home.settle();
    assert_eq!(jobs[0]["state"], "live", "{jobs:#?}");
    home.ok(&["verify", complete]);
    home.ok(&["live", "remove", queued["model"].as_str().unwrap(), "--from-environment"]);
}

#[test]
fn no_key_is_anywhere() {
    let server = StandIn::start().unwrap();
    server.want_key("hunter2");
    let home = Home::new(&server.url());
    let file = home.dir.path().join("key");
    std::fs::write(&file, "hunter2").unwrap();
    let mut said = String::new();
    let mut run = |arguments: &[&str]| {
        let output = home.command(arguments).env("TENON_TEST_KEY", "hunter2").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        said += &format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let url = server.url();
    run(&["env", "add", "variable", "--kind", "ollama", "--url", &url, "--api-key-env", "TENON_TEST_KEY"]);
    run(&["env", "add", "file", "--kind", "ollama", "--url", &url, "--api-key-file", file.to_str().unwrap()]);
    for environment in ["variable", "file"] {
        run(&["env", "test", environment]);
        run(&["env", "show", environment, "--json"]);
        run(&[
            "deploy",
            &home.model,
            "--env",
            environment,
            "--quantization",
            "no_quantization",
            "--as",
            environment,
        ]);
    }
    run(&["env", "list"]);
    run(&["jobs", "--json"]);
    assert!(said.contains("TENON_TEST_KEY") && !said.contains("hunter2"), "{said}");
    let mut files = vec![home.path("")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "{}", path.display());
        }
    }
    let (code, error) = home.fails(&["env", "test", "variable"]);
    assert_eq!(code, 3, "{error}");
    assert!(error.contains("TENON_TEST_KEY"), "{error}");
    let (code, error) =
        home.fails(&["env", "add", "x", "--kind", "ollama", "--url", "http://u:hunter2@localhost"]);
    assert!(code == 3 && !error.contains("hunter2"), "{error}");
}

#[test]
fn what_cannot_be_is_said_before_anything_is_done() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    for (arguments, word) in [
        (home.deploy(&["--env", "env"]), "cannot be used multiple times"),
        (vec!["deploy", "nobody", "--env", "env", "--quantization", "q8_0"], "no Complete Model named"),
        (
            vec!["deploy", &home.model, "--env", "nowhere", "--quantization", "q8_0"],
            "no Deployment Environment named",
        ),
        (vec!["deploy", &home.model, "--env", "env", "--quantization", "q5_0"], "is no quantization"),
        (
            vec!["deploy", &home.model, "--env", "env", "--quantization", "q8_0", "--as", "a b"],
            "no name that this server",
        ),
        (vec!["env", "add", "x", "--kind", "ollama", "--url", "localhost"], "must begin with http"),
        (
            vec!["env", "add", "x", "--kind", "ollama", "--url", "http://h", "--option", "fast=1"],
            "have no option",
        ),
        (vec!["env", "add", "x", "--kind", "ftp", "--url", "http://h"], "is no kind"),
        (vec!["env", "add", "ENV", "--kind", "ollama", "--url", "http://h"], "named ENV already"),
        (vec!["live", "check", "nobody"], "no Live Model named"),
    ] {
        let (code, error) = home.fails(&arguments);
        assert!(error.contains(word) && code > 1, "{arguments:?}: {code} {error}");
    }
    assert_eq!(server.seen(), [], "nobody was asked");
    assert_eq!(home.deployments(), [Value::Null; 0]);
    // Without a Deployment Template File.
    let bare = Home { dir: tempfile::tempdir().unwrap(), model: String::new() };
    bare.ok(&["env", "add", "env", "--kind", "ollama", "--url", &server.url()]);
    let model = bare.json(&["save", ADAPTER, "--base", BASE, "--json"])["saving"]["name"]
        .as_str()
        .unwrap()
        .to_string();
    let (code, error) = bare.fails(&["deploy", &model, "--env", "env", "--quantization", "q8_0"]);
    assert!(
        code == 3
            && error.contains("Deployment Template File")
            && error.contains("hint: tenon base template"),
        "{error}"
    );
}

#[test]
fn all_live_models_are_asked_about_where_none_is_named() {
    let server = StandIn::start().unwrap();
    let (home, other) = (Home::new(&server.url()), Home::new(&server.url()));
    assert_eq!(home.ok(&["live", "check"]), "There is no Live Model.\n");
    let deploy = |home: &Home, name: &str, more: &[&str]| {
        let arguments = ["deploy", &home.model, "--env", "env", "--quantization", "q8_0", "--as", name];
        home.ok(&[&arguments[..], more].concat());
    };
    deploy(&home, "first", &[]);
    deploy(&home, "second", &[]);
    let said = home.ok(&["live", "check"]);
    assert!(
        said.contains("env/first:latest is live") && said.contains("env/second:latest is live"),
        "{said}"
    );
    deploy(&other, "first", &["--replace", "--quantize-on", "server"]);
    let output = home.run(&["live", "check", "--json"]);
    assert_eq!(output.status.code(), Some(6));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found: Vec<_> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|live| (live["model"].as_str(), live["condition"].as_str()))
        .collect();
    found.sort();
    assert_eq!(found, [(Some("first:latest"), Some("changed")), (Some("second:latest"), Some("live"))]);
}

#[test]
fn a_name_that_somebody_else_has_there_is_left_alone() {
    let server = StandIn::start().unwrap();
    let (home, other) = (Home::new(&server.url()), Home::new(&server.url()));
    other.ok(&other.deploy(&[]));
    let theirs = server.model("m:latest").unwrap();
    let (code, error) = home.fails(&home.deploy(&[]));
    assert!(code == 5 && error.contains("--replace"), "{error}");
    assert_eq!(server.model("m:latest").unwrap(), theirs);
    assert_eq!(home.deployments()[0]["state"], "failed");
    // The same files would be the same model; so quantized.
    let q8 = ["--quantization", "q8_0", "--quantize-on", "server", "--as", "m", "--replace"];
    home.ok(&[&["deploy", &home.model, "--env", "env"][..], &q8[..]].concat());
    // The other's entry finds out.
    let output = other.run(&["live", "check", "m"]);
    assert_eq!(output.status.code(), Some(6));
    assert_eq!(other.live()[0]["condition"], "changed");
    let (_, error) = other.fails(&["live", "remove", "m", "--from-environment"]);
    assert!(error.contains("another model has the name"), "{error}");
    assert_eq!(server.models().len(), 1);
    other.ok(&["live", "remove", "m"]);
    home.assert_true(&server);
}
