//! What the command line does beside a home, asked for over HTTP.

use serde_json::{Value, json};
use tenon_server::Options;

use crate::served::{Served, fixtures};

/// The job that a request began, when it has ended.
pub(crate) fn done(served: &Served, path: &str, body: &Value) -> Value {
    let queued = served.post(path, body);
    assert_eq!(queued.status, 202, "{path}: {}", queued.text());
    let job = served.ended(queued.json()["id"].as_str().unwrap());
    assert_eq!(job["state"], "done", "{job}");
    job
}

#[test]
fn an_adapter_is_merged_into_a_directory_and_that_is_a_base_like_any_other() {
    let served = Served::new();
    let customized = served.register();
    let mut body =
        json!({ "base": "kjv", "adapters": [{ "adapter": customized }], "out": "whole", "dry_run": true });
    let plan = served.post("merges", &body);
    assert_eq!(plan.status, 200, "{}", plan.text());
    assert_eq!((&plan.json()["method"], &plan.json()["notes"]), (&json!("LoRA"), &json!([])));
    assert!(plan.json()["bytes_needed"].as_u64().unwrap() > 0);
    assert_eq!(served.get("jobs").json()["total"], 0, "nothing was done");
    body["dry_run"] = json!(false);
    let job = done(&served, "merges", &body);
    assert_eq!((&job["kind"], &job["model"], &job["share"]), (&json!("merge"), &json!("whole"), &json!(1.0)));
    let path = job["result"]["path"].as_str().unwrap();
    // The same as on the command line.
    let beside = tempfile::tempdir().unwrap();
    let merge = tenon::Merge::new(
        fixtures().join("kjv-llama/base"),
        fixtures().join("kjv-llama/adapter-lora"),
        beside.path().join("whole"),
    );
    merge.max_shard_size(200_000).plan().unwrap().run(&()).unwrap();
    for entry in std::fs::read_dir(beside.path().join("whole")).unwrap() {
        let name = entry.unwrap().file_name();
        let read = |dir: &std::path::Path| std::fs::read(dir.join(&name)).unwrap();
        assert!(read(path.as_ref()) == read(&beside.path().join("whole")), "{name:?}");
    }
    let steps = served.get(&format!("jobs/{}/log", job["id"].as_str().unwrap())).json();
    let steps: Vec<_> = steps["lines"].as_array().unwrap().iter().map(|line| line["step"].clone()).collect();
    assert!(steps.contains(&json!("started")) && steps.contains(&json!("shard")), "{steps:?}");
    served.post("merges", &body).is_problem(409, "name_taken");
    let found = served.get("directories?holds=base").json();
    assert!(found["found"].as_array().unwrap().contains(&json!(path)), "{found}");
    assert_eq!(served.post("base-models", &json!({ "path": path })).status, 201);
}

#[test]
fn whole_models_are_blended_and_adapters_combined() {
    let served = Served::new();
    let models = fixtures().join("blend/models");
    for name in ["b", "c"] {
        let added = served.post("base-models", &json!({ "path": models.join(name), "name": name }));
        assert_eq!(added.status, 201, "{}", added.text());
    }
    let expected = fixtures().join("blend/cases/linear-plain");
    let configuration = std::fs::read_to_string(expected.join("merge.yml")).unwrap();
    let job = done(&served, "blends", &json!({ "configuration": configuration, "out": "blended" }));
    assert_eq!(job["result"]["method"], "linear");
    let file = |dir: &std::path::Path| std::fs::metadata(dir.join("config.json")).is_ok();
    assert!(file(job["result"]["path"].as_str().unwrap().as_ref()));
    // Models by path, under an allowed one and under none.
    let by_path = |dir: &str| {
        let configuration = format!(
            "models: [{{model: {dir}/b}}, {{model: c}}]\nmerge_method: linear\nparameters: {{weight: 1}}\n"
        );
        served.post("blends", &json!({ "configuration": configuration, "out": "other", "dry_run": true }))
    };
    assert_eq!(by_path(models.to_str().unwrap()).status, 200);
    by_path("/etc").is_problem(403, "path_not_allowed");
    by_path("..").is_problem(403, "path_not_allowed");
    let unknown = json!({ "configuration": "models: [{model: nobody}]\nmerge_method: linear\n", "out": "x" });
    served.post("blends", &unknown).is_problem(404, "not_found");
    served.post("blends", &json!({ "configuration": "{", "out": "x" })).is_problem(422, "invalid_input");

    let adapters = fixtures().join("peft-combine");
    let one = |name: &str, weight: f64| json!({ "adapter": adapters.join(name), "weight": weight });
    let body = json!({ "adapters": [one("a", 0.7), one("b", 0.4)], "combine": { "combination_type": "cat" }, "out": "both" });
    let job = done(&served, "combinations", &body);
    let dir = std::path::PathBuf::from(job["result"]["path"].as_str().unwrap());
    assert!(dir.join("adapter_model.safetensors").is_file());
    // Combined on the way, the same comes out as in two steps.
    let weights = |job: &Value| {
        std::fs::read(std::path::Path::new(job["result"]["path"].as_str().unwrap()).join("model.safetensors"))
    };
    let base = adapters.join("base");
    let mut merge = json!({ "base": base, "adapters": [{ "adapter": dir }], "out": "two-steps" });
    let two_steps = done(&served, "merges", &merge);
    merge["adapters"] = body["adapters"].clone();
    merge["combine"] = body["combine"].clone();
    merge["out"] = json!("one-step");
    let one_step = done(&served, "merges", &merge);
    assert!(weights(&two_steps).unwrap() == weights(&one_step).unwrap());
    merge["out"] = json!("one-after-the-other");
    merge.as_object_mut().unwrap().remove("combine");
    done(&served, "merges", &merge);
    let found = served.post("inspect", &json!({ "path": dir })).json();
    assert_eq!((&found["kind"], &found["method"]), (&json!("adapter"), &json!("LoRA")));
}

#[cfg(unix)]
#[test]
fn a_blend_hashes_what_the_hub_cache_names_only_when_it_is_asked_to() {
    let allowed = tempfile::tempdir().unwrap();
    let served = Served::with(Options { allow_paths: vec![allowed.path().into()], ..Options::default() });
    let cache = allowed.path().join("models--somebody--b");
    let model = cache.join("snapshots/main");
    std::fs::create_dir_all(cache.join("blobs")).unwrap();
    std::fs::create_dir_all(&model).unwrap();
    let from = fixtures().join("blend/models/b");
    let blob = format!("../../blobs/{}", "ab".repeat(32));
    std::fs::copy(from.join("model.safetensors"), model.join(&blob)).unwrap();
    std::fs::copy(from.join("config.json"), model.join("config.json")).unwrap();
    std::os::unix::fs::symlink(&blob, model.join("model.safetensors")).unwrap();
    let configuration = format!(
        "models: [{{model: {}, parameters: {{weight: 1}}}}]\nmerge_method: linear\ndtype: bfloat16\n",
        model.display()
    );
    let known_by = |out: &str, hash: bool| {
        let body = json!({ "configuration": configuration, "out": out, "hash_inputs": hash });
        let job = done(&served, "blends", &body);
        let manifest = std::path::Path::new(job["result"]["path"].as_str().unwrap()).join("tenon.json");
        let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        manifest["models"][0]["files"][0].clone()
    };
    assert_eq!(known_by("by-name", false)["hub_sha256"], json!("ab".repeat(32)));
    let read = known_by("by-bytes", true);
    assert_eq!((&read["hub_sha256"], read["sha256"].as_str().map(str::len)), (&Value::Null, Some(64)));
}

#[test]
fn a_gguf_is_made_of_a_model_and_looked_into() {
    let served = Served::new();
    let complete = served.save()["model"].as_str().unwrap().to_string();
    let body = json!({ "model": complete, "quantization": "q8_0" });
    let kept = done(&served, "ggufs", &body);
    assert_eq!((&kept["result"]["reused"], &kept["quantization"]), (&json!(false), &json!("q8_0")));
    assert_eq!(done(&served, "ggufs", &body)["result"]["reused"], true);
    let adapter = fixtures().join("kjv-llama/adapter-lora");
    let merged = json!({ "model": "kjv", "adapters": [{ "adapter": adapter }], "out": "kjv-Q8_0.gguf", "quantization": "q8_0" });
    let path = done(&served, "ggufs", &merged)["result"]["path"].as_str().unwrap().to_string();
    let found = served.post("inspect", &json!({ "path": path })).json();
    assert_eq!(found["kind"], "gguf");
    assert_eq!(found["gguf"]["metadata"]["general.architecture"], "llama", "{found}");
    served.post("ggufs", &json!({ "model": "kjv" })).is_problem(422, "invalid_input");
}

#[test]
fn a_complete_model_is_rebuilt_and_the_home_compared_with_its_catalogue() {
    let served = Served::new();
    let complete = served.save()["model"].as_str().unwrap().to_string();
    let job = done(&served, &format!("complete-models/{complete}/rebuild"), &json!({}));
    assert_eq!((&job["kind"], &job["result"]["same"]), (&json!("rebuild"), &json!(true)), "{job}");
    served.post("complete-models/none/rebuild", &json!({})).is_problem(404, "not_found");
    let report = served.post("registry/check", &json!({})).json();
    assert_eq!((&report["agree"], &report["repaired"]), (&json!(1), &json!(false)));
}

#[test]
fn nothing_is_named_or_made_outside_the_allowed_paths() {
    let allowed = tempfile::tempdir().unwrap();
    let options =
        Options { allow_paths: vec![fixtures(), allowed.path().into()], work: false, ..Options::default() };
    let served = Served::with(options);
    let customized = served.register();
    let home = served.tenon.registry().home().root().to_path_buf();
    let out = |out: &std::path::Path| {
        served.post(
            "merges",
            &json!({ "base": "kjv", "adapters": [{ "adapter": customized }], "out": out, "dry_run": true }),
        )
    };
    assert_eq!(out(&allowed.path().join("new")).status, 200);
    for bad in [
        home.join("complete/new"),
        home.join("new"),
        "/tmp/new".into(),
        allowed.path().join("../new"),
        allowed.path().join("none/new"),
        allowed.path().join("new/.."),
    ] {
        out(&bad).is_problem(403, "path_not_allowed");
    }
    out("..".as_ref()).is_problem(422, "invalid_name");
    let base = |base: &str| {
        served.post(
            "merges",
            &json!({ "base": base, "adapters": [{ "adapter": customized }], "out": "x", "dry_run": true }),
        )
    };
    base("/etc").is_problem(403, "path_not_allowed");
    base("../kjv").is_problem(403, "path_not_allowed");
    base("nobody").is_problem(404, "not_found");
    served.post("inspect", &json!({ "path": "/etc/passwd" })).is_problem(403, "path_not_allowed");
}

#[test]
fn what_waits_is_cancelled_begun_again_and_its_log_outlives_the_server() {
    let home = tempfile::tempdir().unwrap();
    let options = |work| Options { allow_paths: vec![fixtures()], work, ..Options::default() };
    let mut served = Served::at(home.path(), options(false));
    let customized = served.register();
    let body = json!({ "base": "kjv", "adapters": [{ "adapter": customized }], "out": "whole" });
    let id = served.post("merges", &body).json()["id"].as_str().unwrap().to_string();
    let act = |served: &Served, id: &str, verb: &str| {
        served.ask("POST", &format!("/api/v1/jobs/{id}/{verb}"), &[], None)
    };
    assert_eq!(act(&served, &id, "cancel").json()["state"], "cancelled");
    act(&served, &id, "cancel").is_problem(409, "not_open");
    let again = act(&served, &id, "retry").json();
    assert_eq!((&again["state"], &again["model"]), (&json!("queued"), &json!("whole")));
    served.stop();
    // The next one works on it, and the one after that knows what happened.
    let mut served = Served::at(home.path(), options(true));
    let id = again["id"].as_str().unwrap();
    assert_eq!(served.ended(id)["state"], "done");
    let log = |served: &Served| served.get(&format!("jobs/{id}/log")).json();
    let told = log(&served);
    assert!(told["lines"].as_array().unwrap().iter().any(|line| line["step"] == "shard"), "{told}");
    served.stop();
    let served = Served::at(home.path(), options(false));
    assert_eq!(log(&served), told);
}
