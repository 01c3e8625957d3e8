//! Requests that are wrong, sent twice, or ask for a part.

use serde_json::{Value, json};
use tenon_server::Options;

use crate::served::{Served, fixtures};

#[test]
fn bodies_that_are_no_json_or_the_wrong_json_are_told_apart() {
    let served = Served::new();
    let post = |body: &str| served.ask("POST", "/api/v1/savings", &[], Some(body));
    for broken in ["", "{", "{\"customized\":", "\u{0}", "nul", "{\"a\":1}}", "{'a':1}"] {
        post(broken).is_problem(400, "malformed_request");
    }
    post(&"[".repeat(100_000)).is_problem(400, "malformed_request");
    for wrong in [
        "[]",
        "1",
        "null",
        "{}",
        "{\"customized\":1}",
        "{\"customized\":null}",
        "{\"customized\":\"x\",\"more\":1}",
    ] {
        post(wrong).is_problem(422, "invalid_body");
    }
    post("{\"customized\":\"no such\"}").is_problem(404, "not_found");
    let latin = b"POST /api/v1/savings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{\"customized\":\"\xff\"}";
    assert_eq!(served.raw(latin).status, 400);
}

#[test]
fn what_is_not_there_is_not_found_and_what_cannot_be_done_is_said() {
    let served = Served::new();
    let id = "00000000-0000-4000-8000-000000000000";
    for path in [
        "none".to_string(),
        "complete-models/none".into(),
        "complete-models/none/card".into(),
        "complete-models/none/files".into(),
        "complete-models/none/files/config.json".into(),
        "customized-models/none".into(),
        "base-models/none".into(),
        "base-models/none/template".into(),
        "environments/none".into(),
        "live-models/none/none".into(),
        format!("jobs/{id}"),
        format!("jobs/{id}/log"),
        "jobs/none".into(),
    ] {
        served.get(&path).is_problem(404, "not_found");
    }
    for path in ["complete-models/none/verify", "environments/none/test", "live-models/none/none/check"] {
        served.ask("POST", &format!("/api/v1/{path}"), &[], None).is_problem(404, "not_found");
    }
    for (method, path) in
        [("PUT", "jobs"), ("POST", "complete-models"), ("PATCH", "base-models/x"), ("DELETE", "jobs")]
    {
        let answer = served.ask(method, &format!("/api/v1/{path}"), &[], None);
        answer.is_problem(405, "method_not_allowed");
        assert!(answer.header("allow").contains("GET") || path == "savings", "{}", answer.header("allow"));
    }
    served.ask("POST", "/", &[], None).is_problem(405, "method_not_allowed");
}

#[test]
fn paths_lead_nowhere_else() {
    let served = Served::new();
    let job = served.save();
    let model = job["model"].as_str().unwrap();
    let secret = served.tenon.registry().home().root().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let inside = served.tenon.registry().home().root().join("complete").join(model);
    std::os::unix::fs::symlink(&secret, inside.join("link")).unwrap();
    for file in [
        "../../secret",
        "..%2f..%2fsecret",
        "%2e%2e%2f%2e%2e%2fsecret",
        "..%5c..%5csecret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "link",
        "config.json%00",
        ".",
        "..",
        "%2e%2e",
        "catalogue.db",
    ] {
        let answer = served.get(&format!("complete-models/{model}/files/{file}"));
        assert!([400, 404].contains(&answer.status), "{file}: {}", answer.status);
        assert!(!answer.text().contains("secret\n") && answer.text() != "secret", "{file}");
    }
    for name in ["..", "../..", "%2e%2e", "..%2fstaging", "x%00", "%ff", "%"] {
        let answer = served.get(&format!("complete-models/{name}"));
        assert!([400, 404].contains(&answer.status), "{name}: {}", answer.status);
        let deleted = served.ask("DELETE", &format!("/api/v1/complete-models/{name}"), &[], None);
        assert!([400, 404, 405].contains(&deleted.status), "{name}: {}", deleted.status);
    }
    for page in
        ["/../Cargo.toml", "/script/../../src/lib.rs", "/%2e%2e/Cargo.toml", "//etc/passwd", "/script/"]
    {
        assert_eq!(served.ask("GET", page, &[], None).status, 404, "{page}");
    }
    assert!(inside.is_dir());
}

#[test]
fn only_directories_under_allowed_paths_are_registered() {
    let served = Served::new();
    let base = fixtures().join("kjv-llama/base");
    let up = fixtures().join("../crates");
    for path in ["/etc", "/", "", "kjv-llama/base", "~", up.to_str().unwrap(), "/no/such/dir"] {
        let refused = served.post("base-models", &json!({ "path": path }));
        refused.is_problem(403, "path_not_allowed");
        served
            .post("customized-models", &json!({ "path": path, "base": "x" }))
            .is_problem(403, "path_not_allowed");
    }
    let closed = Served::with(Options::default());
    let refused = closed.post("base-models", &json!({ "path": base }));
    refused.is_problem(403, "path_not_allowed");
    assert!(refused.json()["hint"].as_str().unwrap().contains("--allow-path"));
    let found = served.get("directories?holds=adapter").json();
    let found: Vec<_> =
        found["found"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert!(found.iter().any(|path| path.ends_with("kjv-llama/adapter-lora")), "{found:?}");
    served
        .post("base-models", &json!({ "path": fixtures().join("kjv-llama") }))
        .is_problem(422, "invalid_input");
    served.post("base-models", &json!({ "path": base, "name": "../x" })).is_problem(422, "invalid_name");
    assert_eq!(served.post("base-models", &json!({ "path": base, "name": "kjv" })).status, 201);
    served.post("base-models", &json!({ "path": base, "name": "KJV" })).is_problem(409, "name_taken");
    let other = json!({ "path": fixtures().join("peft-golden/lora-neox/adapter"), "base": "kjv" });
    let refused = served.post("customized-models", &other);
    refused.is_problem(422, "invalid_input");
}

#[test]
fn keys_of_environments_are_named_and_only_those_meant_for_it() {
    let served = Served::new();
    let add = |name: &str, url: &str, key: Option<&str>| {
        served
            .post("environments", &json!({ "name": name, "kind": "ollama", "url": url, "key_variable": key }))
    };
    add("a", "http://127.0.0.1:1", Some("HOME")).is_problem(422, "invalid_input");
    add("a", "file:///etc/passwd", None).is_problem(422, "invalid_input");
    add("a", "http://user:pass@127.0.0.1:1", None).is_problem(422, "invalid_input");
    assert_eq!(add("a", "http://127.0.0.1:1", Some("TENON_KEY_A")).status, 201);
    let shown = served.get("environments/a");
    assert!(!shown.text().contains("TENON_KEY_A"), "{}", shown.text());
    let tested = served.ask("POST", "/api/v1/environments/a/test", &[], None).json();
    assert_eq!(tested["tested"]["answers"], false, "{tested}");
    assert!(tested["tested"]["reason"].is_string());
}

#[test]
fn environments_have_the_options_of_their_kind() {
    let served = Served::new();
    let add = |name: &str, more: Value| {
        let mut body = json!({ "name": name, "kind": "ollama", "url": "http://127.0.0.1:1" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        served.post("environments", &body)
    };
    let added = add("a", json!({ "timeout_seconds": 2.5, "options": { "uploads": "4" } }));
    assert_eq!(added.status, 201, "{}", added.text());
    assert_eq!(
        (&added.json()["timeout_seconds"], &added.json()["options"]["uploads"]),
        (&json!(2.5), &json!("4"))
    );
    add("b", json!({ "options": { "no-such": "4" } })).is_problem(422, "invalid_input");
    add("b", json!({ "timeout_seconds": 0 })).is_problem(422, "invalid_body");
    add("b", json!({ "ca": "/etc/passwd" })).is_problem(403, "path_not_allowed");
}

#[test]
fn an_attached_template_is_checked_against_the_models_own() {
    let served = Served::new();
    served.register();
    let template =
        |verb: &str, body: Option<&str>| served.ask(verb, "/api/v1/base-models/kjv/template", &[], body);
    served.get("base-models/kjv/template/check").is_problem(404, "not_found");
    let text = json!({ "file": "Modelfile", "text": "TEMPLATE {{ .Prompt }}" }).to_string();
    assert_eq!(template("PUT", Some(&text)).status, 200);
    let checked = served.get("base-models/kjv/template/check").json();
    assert_eq!(checked["file"], "Modelfile");
    assert!(checked["agrees"].is_boolean() && checked["warnings"].is_array(), "{checked}");
}

#[test]
fn full_weight_deltas_and_adapters_of_other_layouts_are_registered_and_merged() {
    let served = Served::new();
    served.register();
    // That which is no delta says so, and not that it is no adapter.
    let base = fixtures().join("kjv-llama/base");
    let delta = json!({ "path": base, "base": "kjv", "delta": true, "train_name": "full" });
    let added = served.post("customized-models", &delta);
    assert_eq!(added.status, 201, "{}", added.text());
    assert!(added.json()["name"].as_str().unwrap().starts_with("kjv_full_"));
    let as_adapter = json!({ "path": base, "base": "kjv" });
    served.post("customized-models", &as_adapter).is_problem(422, "invalid_input");
}

#[test]
fn lists_are_searched_sorted_and_turned_over() {
    let served = Served::new();
    let bases = ["kjv-llama/base", "peft-golden/bases/llama-float32", "peft-golden/bases/qwen2-float32"];
    for (n, path) in bases.iter().enumerate() {
        let added = served
            .post("base-models", &json!({ "path": fixtures().join(path), "name": format!("base-{n}") }));
        assert_eq!(added.status, 201, "{}", added.text());
    }
    let names = |query: &str| -> Vec<String> {
        let page = served.get(&format!("base-models{query}")).json();
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_string())
            .collect()
    };
    assert_eq!(names("?sort=name"), ["base-0", "base-1", "base-2"]);
    assert_eq!(names("?sort=-name"), ["base-2", "base-1", "base-0"]);
    assert_eq!(names(""), ["base-2", "base-1", "base-0"], "newest first");
    assert_eq!(names("?sort=-bytes&limit=1"), ["base-0"]);
    assert_eq!(names("?sort=name&offset=1&limit=1"), ["base-1"]);
    assert_eq!(names("?q=SE-2"), ["base-2"]);
    assert_eq!(names("?base=base-1"), ["base-1"]);
    assert!(names("?q=none").is_empty() && names("?offset=100").is_empty() && names("?state=x").is_empty());
    let page = served.get("base-models?limit=2").json();
    assert_eq!((&page["total"], &page["offset"], &page["limit"]), (&json!(3), &json!(0), &json!(2)));
    for bad in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=-1",
        "offset=-1",
        "offset=1e9",
        "sort=size",
        "page=2",
        "limit=1&limit=2",
    ] {
        served.get(&format!("base-models?{bad}")).is_problem(400, "invalid_query");
    }
    let first = served.get("base-models");
    let etag = first.header("etag").to_string();
    let again = |etag: &str| served.ask("GET", "/api/v1/base-models", &[("If-None-Match", etag)], None);
    assert_eq!((again(&etag).status, again(&etag).body.len()), (304, 0));
    assert_eq!(served.ask("DELETE", "/api/v1/base-models/base-1", &[], None).status, 204);
    assert_eq!(again(&etag).status, 200, "the list is another now");
    assert_eq!(names("?sort=name"), ["base-0", "base-2"]);
}

#[test]
fn a_request_sent_again_with_its_key_is_not_done_again() {
    let home = tempfile::tempdir().unwrap();
    let options = || Options { allow_paths: vec![fixtures()], work: false, ..Options::default() };
    let mut served = Served::at(home.path(), options());
    let customized = served.register();
    let body = json!({ "customized": customized }).to_string();
    let save = |served: &Served, key: &str| {
        served.ask("POST", "/api/v1/savings", &[("Idempotency-Key", key)], Some(&body))
    };
    let first = save(&served, "one");
    assert_eq!((first.status, first.header("idempotency-replayed")), (202, ""));
    let again = save(&served, "one");
    assert_eq!((again.status, again.header("idempotency-replayed")), (202, "true"));
    assert_eq!((again.json(), again.header("location")), (first.json(), first.header("location")));
    assert_ne!(save(&served, "two").json()["id"], first.json()["id"]);
    let other = json!({ "customized": "other" }).to_string();
    served
        .ask("POST", "/api/v1/savings", &[("Idempotency-Key", "one")], Some(&other))
        .is_problem(422, "idempotency_key_reused");
    // What failed may be tried again.
    let missing = || served.ask("POST", "/api/v1/savings", &[("Idempotency-Key", "three")], Some(&other));
    missing().is_problem(404, "not_found");
    missing().is_problem(404, "not_found");
    for bad in ["", &"x".repeat(129)] {
        save(&served, bad).is_problem(400, "malformed_request");
    }
    // Many at once do it once.
    let ids: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| save(&served, "four"))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let ids: std::collections::HashSet<_> = ids
        .iter()
        .filter(|answer| answer.status == 202)
        .map(|answer| answer.json()["id"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(ids.len(), 1);
    served.stop();
    let served = Served::at(home.path(), options());
    assert_eq!(save(&served, "one").json(), first.json(), "known to the next process too");
}

#[test]
fn files_come_whole_and_in_parts() {
    let served = Served::new();
    let model = served.save()["model"].as_str().unwrap().to_string();
    let path = format!("/api/v1/complete-models/{model}/files/config.json");
    let whole = served.ask("GET", &path, &[], None);
    let on_disk = std::fs::read(served.tenon.path(&model).unwrap().join("config.json")).unwrap();
    assert_eq!((whole.status, &whole.body), (200, &on_disk));
    let len = on_disk.len();
    assert_eq!(whole.header("content-length"), len.to_string());
    assert_eq!((whole.header("accept-ranges"), whole.header("content-disposition")), ("bytes", "attachment"));
    let etag = whole.header("etag").to_string();
    assert_eq!(etag, format!("\"{}\"", tenon::Digest::of(&on_disk)));
    let part = |headers: &[(&str, &str)]| served.ask("GET", &path, headers, None);
    let first = part(&[("Range", "bytes=0-9")]);
    assert_eq!((first.status, &*first.body), (206, &on_disk[..10]));
    assert_eq!(first.header("content-range"), format!("bytes 0-9/{len}"));
    let last = part(&[("Range", "bytes=-7")]);
    assert_eq!((last.status, &*last.body), (206, &on_disk[len - 7..]));
    let rest = part(&[("Range", "bytes=10-"), ("If-Range", &etag)]);
    assert_eq!([&*first.body, &*rest.body].concat(), on_disk);
    assert_eq!(
        part(&[("Range", "bytes=10-"), ("If-Range", "\"other\"")]).status,
        200,
        "of another file, all"
    );
    let beyond = part(&[("Range", &format!("bytes={len}-"))]);
    beyond.is_problem(416, "range_not_satisfiable");
    assert_eq!(beyond.header("content-range"), format!("bytes */{len}"));
    assert_eq!(part(&[("Range", "bytes=0-1,4-5")]).status, 200);
    assert_eq!(part(&[("If-None-Match", &etag)]).status, 304);
    let head = served.ask("HEAD", &path, &[], None);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, &*len.to_string(), 0));
    let files = served.get(&format!("complete-models/{model}/files")).json();
    let names: Vec<_> =
        files["items"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"README.md") && names.contains(&"config.json"), "{names:?}");
    assert_eq!(served.get(&format!("complete-models/{model}/files/tenon.json")).status, 200);
}
