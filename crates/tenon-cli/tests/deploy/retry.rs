//! `tenon jobs retry`: what failed or was cancelled, again.

use tenon_standin::Act;

use super::*;

#[test]
fn a_deployment_that_failed_is_begun_again_with_what_is_there() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    server.rule("POST /api/create", None, Act::CutAnswer(0));
    home.fails(&["deploy", &home.model, "--env", "env", "--quantization", "q4_K_M", "--as", "m"]);
    let failed = home.deployments().remove(0);
    let id = failed["id"].as_str().unwrap();
    let sent = server.uploaded_bytes();
    server.behave();
    let live = home.json(&["jobs", "retry", &id[..8], "--json"]);
    assert_eq!((&live["state"], &live["model"]), (&"live".into(), &"m:latest".into()));
    assert_eq!(live["quantization"], "q4_K_M");
    assert_eq!(server.uploaded_bytes(), sent, "the file was there");
    home.assert_true(&server);
    // The one that failed stays what it was; the new one cannot be had again.
    let jobs = home.deployments();
    assert_eq!((&jobs[0]["id"], &jobs[0]["state"]), (&failed["id"], &"failed".into()));
    let again = jobs[1]["id"].as_str().unwrap();
    let (code, error) = home.fails(&["jobs", "retry", again]);
    assert!(code == 2 && error.contains("is live; only what failed or was cancelled"), "{error}");
    let (code, _) = home.fails(&["jobs", "retry", "ffffffff-"]);
    assert_eq!(code, 2);
}

#[test]
fn a_saving_that_failed_and_the_deployment_that_waited_for_it_are_begun_again() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    // An adapter of its own, to be changed.
    let adapter = home.dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(ADAPTER);
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, adapter.join(path.file_name().unwrap())).unwrap();
    }
    let added = home.json(&["customized", "add", adapter.to_str().unwrap(), "--base", "base", "--json"]);
    let customized = added["name"].as_str().unwrap();
    let weights = adapter.join("adapter_model.safetensors");
    let right = std::fs::read(&weights).unwrap();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, wrong).unwrap();
    let arguments = ["deploy", customized, "--env", "env", "--quantization", "q8_0", "--json"];
    let (code, error) = home.fails(&arguments);
    assert!(code != 0 && error.contains("adapter_model.safetensors"), "{error}");
    let failed = home.deployments().remove(0);
    assert_eq!(failed["state"], "failed", "{failed:#}");
    std::fs::write(&weights, right).unwrap();

    let live = home.json(&["jobs", "retry", failed["id"].as_str().unwrap(), "--json"]);
    assert_eq!(live["state"], "live");
    assert_ne!(live["model"], failed["model"], "the model has another name, and so it has there");
    assert!(live["model"].as_str().unwrap().starts_with(customized), "{live:#}");
    home.assert_true(&server);
    // The Saving by itself.
    let saving = failed["saving"].as_str().unwrap();
    let said = home.ok(&["jobs", "retry", &saving[..8]]);
    assert!(said.contains("is whole"), "{said}");
    let (code, _) = home.fails(&["jobs", "retry", "--detach", live["deployment"].as_str().unwrap()]);
    assert_eq!(code, 2, "it is live");
}
