//! What verbs made: listed, taken away, removed.

use serde_json::json;
use tenon_server::Options;

use crate::served::{Served, fixtures};
use crate::verbs::done;

#[test]
fn what_was_made_is_listed_taken_away_and_removed() {
    let served = Served::new();
    assert_eq!(served.get("results").json()["total"], 0);
    let customized = served.register();
    let merge = json!({ "base": "kjv", "adapters": [{ "adapter": customized }], "out": "whole" });
    done(&served, "merges", &merge);
    let gguf = json!({ "model": "kjv", "adapters": [{ "adapter": customized }], "out": "whole.gguf", "quantization": "q8_0" });
    let job = done(&served, "ggufs", &gguf);
    let quality = &job["result"]["quality"];
    assert!(quality["relative_error"].as_f64().unwrap() > 0.0 && quality["worst"].is_array(), "{job}");

    let listed = served.get("results?sort=name").json();
    let kinds: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].clone(), one["kind"].clone()))
        .collect();
    assert_eq!(kinds, [(json!("whole"), json!("model")), (json!("whole.gguf"), json!("gguf"))]);
    assert_eq!(served.get("results?q=GGUF&limit=1").json()["total"], 1);
    let etag = served.get("results").header("etag").to_string();
    let again = served.ask("GET", "/api/v1/results", &[("If-None-Match", &etag)], None);
    assert_eq!(again.status, 304);

    let files = served.get("results/whole").json();
    let weights = files["items"][0]["name"].as_str().unwrap().to_string();
    assert_eq!(
        files["bytes"],
        files["items"].as_array().unwrap().iter().map(|f| f["bytes"].as_u64().unwrap()).sum::<u64>()
    );
    let on_disk =
        std::fs::read(std::path::Path::new(files["path"].as_str().unwrap()).join(&weights)).unwrap();
    assert!(served.get(&format!("results/whole/files/{weights}")).body == on_disk);
    let whole = served.get("results/whole.gguf/files/whole.gguf");
    assert_eq!((whole.status, &whole.body[..4]), (200, &b"GGUF"[..]));
    let range = [("Range", "bytes=-8")];
    let end = served.ask("GET", "/api/v1/results/whole.gguf/files/whole.gguf", &range, None);
    assert_eq!((end.status, &end.body[..]), (206, &whole.body[whole.body.len() - 8..]));
    for bad in [
        "whole/files/..%2Fwhole.gguf",
        "whole/files/%2Fetc%2Fpasswd",
        "whole/files/nothing",
        "whole.gguf/files/other",
        "..%2Fcatalogue.db",
        "..",
        "%2e%2e",
        ".hidden",
        "whole%00",
        "CON",
        "nobody",
    ] {
        served.get(&format!("results/{bad}")).is_problem(404, "not_found");
    }

    let added = served.post("base-models", &json!({ "path": files["path"], "name": "merged" }));
    assert_eq!(added.status, 201, "{}", added.text());
    let remove = |name: &str| served.ask("DELETE", &format!("/api/v1/results/{name}"), &[], None);
    remove("whole").is_problem(409, "in_use");
    assert_eq!(served.ask("DELETE", "/api/v1/base-models/merged", &[], None).status, 204);
    for name in ["whole", "whole.gguf"] {
        assert_eq!(remove(name).status, 204, "{name}");
        remove(name).is_problem(404, "not_found");
    }
    assert_eq!(served.get("results").json()["total"], 0);
    let trash = served.tenon.registry().home().root().join("trash");
    assert_eq!(std::fs::read_dir(trash).unwrap().count(), 0);
}

#[test]
fn what_a_waiting_job_uses_is_not_removed() {
    let served = Served::with(Options { allow_paths: vec![fixtures()], work: false, ..Options::default() });
    let results = served.tenon.registry().home().results();
    for name in ["adapter", "other"] {
        std::fs::create_dir(results.join(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let from = fixtures().join("kjv-llama/adapter-lora").join(file);
            std::fs::copy(from, results.join(name).join(file)).unwrap();
        }
    }
    let merge = json!({ "base": fixtures().join("kjv-llama/base"), "adapters": [{ "adapter": results.join("adapter") }], "out": "whole" });
    assert_eq!(served.post("merges", &merge).status, 202);
    let remove = |name: &str| served.ask("DELETE", &format!("/api/v1/results/{name}"), &[], None);
    remove("adapter").is_problem(409, "in_use");
    assert_eq!(remove("other").status, 204);
    assert!(results.join("adapter/adapter_config.json").is_file() && !results.join("other").exists());
}

#[test]
fn ggufs_kept_with_a_complete_model_are_taken_away_and_go_with_it() {
    let served = Served::new();
    let complete = served.save()["model"].as_str().unwrap().to_string();
    let ggufs = format!("complete-models/{complete}/ggufs");
    assert_eq!(served.get(&ggufs).json()["items"], json!([]));
    let made = done(&served, "ggufs", &json!({ "model": complete, "quantization": "q4_K_M" }));
    let kept = served.get(&ggufs).json();
    let one = &kept["items"][0];
    assert_eq!((&one["sha256"], &one["quantization"]), (&made["result"]["sha256"], &json!("q4_K_M")));
    assert!(one["quality"]["signal_to_noise"].as_f64().unwrap() > 0.0, "{one}");
    let file = one["file"].as_str().unwrap();
    let sent = served.get(&format!("{ggufs}/{file}"));
    assert_eq!((sent.status, sent.body.len() as u64), (200, one["bytes"].as_u64().unwrap()));
    assert_eq!(sent.header("etag").trim_matches('"'), one["sha256"].as_str().unwrap());
    served.get(&format!("{ggufs}/..%2F{file}")).is_problem(404, "not_found");
    served.get("complete-models/nobody/ggufs").is_problem(404, "not_found");
    let remove = |file: &str| served.ask("DELETE", &format!("/api/v1/{ggufs}/{file}"), &[], None);
    remove("other.gguf").is_problem(404, "not_found");
    // While it is sent, or the model read otherwise, it stays.
    let registry = served.tenon.registry();
    let held = registry.hold(&complete.parse().unwrap()).unwrap();
    remove(file).is_problem(409, "in_use");
    served.ask("DELETE", &format!("/api/v1/complete-models/{complete}"), &[], None).is_problem(409, "in_use");
    drop(held);
    assert_eq!(remove(file).status, 204);
    served.get(&format!("{ggufs}/{file}")).is_problem(404, "not_found");
    let again = done(&served, "ggufs", &json!({ "model": complete, "quantization": "q4_K_M" }));
    assert_eq!(
        (&again["result"]["sha256"], &again["result"]["reused"]),
        (&made["result"]["sha256"], &json!(false))
    );
    assert_eq!(served.ask("DELETE", &format!("/api/v1/complete-models/{complete}"), &[], None).status, 204);
    served.get(&format!("{ggufs}/{file}")).is_problem(404, "not_found");
}

#[test]
fn a_gguf_is_made_of_several_adapters_and_with_an_importance_matrix() {
    let served = Served::new();
    let adapters = fixtures().join("peft-combine");
    let one = |name: &str| json!({ "adapter": adapters.join(name), "weight": 0.5 });
    let mut body = json!({ "model": fixtures().join("kjv-llama/base"), "adapters": [{ "adapter": fixtures().join("kjv-llama/adapter-lora") }], "imatrix": "/etc/passwd", "quantization": "q4_K_M", "out": "a.gguf", "dry_run": true });
    served.post("ggufs", &body).is_problem(403, "path_not_allowed");
    body["imatrix"] = json!(fixtures().join("kjv-llama/base/config.json"));
    served.post("ggufs", &body).is_problem(422, "invalid_input");
    body["quantization"] = json!("no_quantization");
    served.post("ggufs", &body).is_problem(422, "invalid_input");
    body.as_object_mut().unwrap().remove("imatrix");
    assert_eq!(served.post("ggufs", &body).status, 200);
    body["adapters"] = json!([one("a"), one("b")]);
    served.post("ggufs", &body).is_problem(422, "invalid_input");
    let lone = json!({ "model": fixtures().join("kjv-llama/base"), "combine": {}, "out": "a.gguf" });
    served.post("ggufs", &lone).is_problem(422, "invalid_body");
}

#[test]
fn a_gguf_over_http_has_the_bytes_of_one_made_in_process_with_the_same_options() {
    let served = Served::new();
    let (base, adapter) = (fixtures().join("kjv-llama/base"), fixtures().join("kjv-llama/adapter-lora"));
    let imatrix = fixtures().join("gguf-golden/imatrix/kjv.imatrix.gguf");
    let mut body = json!({
        "model": base, "adapters": [{ "adapter": adapter }], "quantization": "q4_K_S", "out": "kjv.gguf",
        "name": "King James", "imatrix": imatrix, "rules": "ollama", "tensor_types": ["attn_v=q8_0", "ffn_.*=q5_K"],
    });
    let made = done(&served, "ggufs", &body);
    let beside = tempfile::tempdir().unwrap();
    let options = tenon::GgufOptions {
        name: Some("King James".into()),
        imatrix: Some(imatrix),
        rules: tenon::Rules::Ollama,
        tensor_types: vec!["attn_v=q8_0".parse().unwrap(), "ffn_.*=q5_K".parse().unwrap()],
        ..tenon::GgufOptions::default()
    };
    let gguf = tenon::Gguf::merged(base, adapter, beside.path().join("kjv.gguf"));
    let plan = gguf.quantization(tenon::Quantization::Q4KS).options(options).plan().unwrap();
    assert_eq!(made["result"]["sha256"], json!(plan.run(&()).unwrap().digest));
    let found = served.post("inspect", &json!({ "path": made["result"]["path"] })).json();
    let types: std::collections::BTreeSet<_> = found["gguf"]["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["type"].as_str().unwrap())
        .collect();
    assert!(types.contains("Q8_0") && types.contains("Q5_K"), "{types:?}");

    body["out"] = json!("another.gguf");
    body["tensor_types"] = json!(["attn_v=q9_0"]);
    served.post("ggufs", &body).is_problem(422, "invalid_input");
    body["tensor_types"] = json!(["attn_v=q8_0"]);
    body["quantization"] = json!("no_quantization");
    body.as_object_mut().unwrap().remove("imatrix");
    served.post("ggufs", &body).is_problem(422, "invalid_input");
    body["quantization"] = json!("q8_0");
    body["rules"] = json!("nobody's");
    served.post("ggufs", &body).is_problem(422, "invalid_body");
}
