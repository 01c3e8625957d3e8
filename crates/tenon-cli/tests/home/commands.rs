//! The commands over a home, as a user sees them.

use super::*;

fn filtered(home: &Home, text: &str, check: impl FnOnce(&str)) {
    insta::with_settings!({filters => vec![
        (r"_\d{8}_[0-9a-f]{4}_s_[0-9a-f]{4}", "_[date]_[id]_s_[id]"),
        (r"_\d{8}_[0-9a-f]{4}", "_[date]_[id]"),
        (r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "[uuid]"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\dZ", "[time]"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[time]"),
        (r"on \d{4}-\d\d-\d\d", "on [day]"),
        (r"\d+\.\d+ s\b", "[duration]"),
        (r"[\d.]+ MB of memory", "[memory]"),
        (r"[0-9a-f]{64}  +[\d.]+ kB  (README.md|card.json|change)", "[sha256]  [size]  $1"),
        (&regex_escape(home.dir.path().to_str().unwrap()), "[dir]"),
        (&regex_escape(repository().to_str().unwrap()), "[repository]"),
    ]}, { check(text) });
}

fn regex_escape(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_ascii_alphanumeric() || c == '/' { vec![c] } else { vec!['\\', c] })
        .collect()
}

#[test]
fn two_folders_become_a_model_in_one_command() {
    let home = Home::new();
    let output = home.run(&["save", ADAPTER, "--base", BASE]);
    assert!(output.status.success());
    let text = String::from_utf8([output.stderr, output.stdout].concat()).unwrap();
    filtered(&home, &text, |text| insta::assert_snapshot!("save", text));
    let name = home.models().remove(0);
    filtered(&home, &home.ok(&["list"]), |text| {
        insta::assert_snapshot!("list", text.replace("  ", " ").replace("  ", " "))
    });
    filtered(&home, &home.ok(&["show", &name]), |text| insta::assert_snapshot!("show", text));
    filtered(&home, &home.ok(&["card", &name]), |text| insta::assert_snapshot!("card", text));
    filtered(&home, &home.ok(&["verify", &name, "--rebuild"]), |text| {
        insta::assert_snapshot!("verify", text)
    });
    // A second save of the same folders knows them.
    let output = home.run(&["save", ADAPTER, "--base", BASE]);
    let err = String::from_utf8(output.stderr).unwrap();
    filtered(&home, &err, |text| insta::assert_snapshot!("save_again", text));
    assert_eq!(home.models().len(), 2);
}

#[test]
fn registered_step_by_step() {
    let home = Home::new();
    let template = home.dir.path().join("llama.modelfile");
    std::fs::write(&template, "TEMPLATE \"{{ .Prompt }}\"\n").unwrap();
    home.ok(&["base", "add", BASE, "--name", "kjv", "--template", template.to_str().unwrap()]);
    let base = home.json(&["base", "show", "kjv", "--json"]);
    assert_eq!(base["template"]["text"], "TEMPLATE \"{{ .Prompt }}\"\n");
    assert!(
        base["files"].as_array().unwrap().iter().all(|file| file["sha256"].as_str().unwrap().len() == 64)
    );
    let id = "abcdef01-2345-4678-89ab-cdef01234567";
    let customized = home.json(&[
        "customized",
        "add",
        ADAPTER,
        "--base",
        "kjv",
        "--train-name",
        "verse",
        "--training-id",
        id,
        "--json",
    ]);
    let name = customized["name"].as_str().unwrap();
    let today =
        home.json(&["customized", "list", "--json"])[0]["created"].as_str().unwrap()[..10].replace('-', "");
    assert_eq!(name, format!("kjv_verse_{today}_abcd"));
    let output = home.run(&[
        "customized",
        "add",
        ADAPTER,
        "--base",
        "kjv",
        "--train-name",
        "verse",
        "--training-id",
        id,
    ]);
    assert_eq!(output.status.code(), Some(5), "the name is taken");
    let saved = home.json(&["save", name, "--json"]);
    let model = saved["saving"]["name"].as_str().unwrap();
    let uuid = saved["saving"]["id"].as_str().unwrap();
    assert_eq!(model, format!("{name}_s_{}", &uuid[..4]));
    assert_eq!(
        home.run(&["base", "remove", "kjv"]).status.code(),
        Some(5),
        "a Customized Model is linked to it"
    );
    home.ok(&["customized", "remove", name]);
    home.ok(&["base", "remove", "kjv"]);
    // The Complete Model needs neither.
    home.ok(&["verify", model]);
    assert_eq!(home.models(), [model]);
}

#[test]
fn a_detached_save_can_be_watched() {
    let home = Home::new();
    let queued = home.json(&["save", ADAPTER, "--base", BASE, "--detach", "--json"]);
    let watched = home.ok(&["jobs", "--watch"]);
    let (id, model) = (queued["id"].as_str().unwrap(), queued["model"].as_str().unwrap());
    assert!(watched.lines().last().unwrap() == format!("{id} done {model}"), "{watched}");
    assert_eq!(home.models(), [model]);
    let log = home.json(&["jobs", "log", &id[..8], "--json"]);
    let steps: Vec<_> = log.as_array().unwrap().iter().map(|line| line["step"].as_str().unwrap()).collect();
    assert!(steps.starts_with(&["queued", "started"]) && steps.ends_with(&["done"]), "{steps:?}");
    let shown = home.json(&["jobs", "show", &id[..8], "--json"]);
    assert_eq!((shown["state"].as_str(), shown["share"].as_f64()), (Some("done"), Some(1.0)));
    assert_eq!(home.run(&["jobs", "cancel", id]).status.code(), Some(3), "it is done already");
    home.assert_true();
}

#[test]
fn a_running_save_can_be_cancelled_from_elsewhere() {
    let home = Home::new();
    home.ok(&["base", "add", BASE]);
    // Stops at its first tile until it is told to go on; there a kill would come.
    let mut child = home
        .command(&["save", ADAPTER, "--base", BASE])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env("TENON_FAULT", "wait:12")
        .spawn()
        .unwrap();
    let start = Instant::now();
    let job = loop {
        let jobs = home.json(&["jobs", "--json"]);
        if let Some(job) = jobs.as_array().unwrap().iter().find(|job| job["state"] == "running") {
            break job.clone();
        }
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    };
    home.ok(&["jobs", "cancel", job["id"].as_str().unwrap()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(home.json(&["jobs", "--json"])[0]["state"], "cancelled");
    assert_eq!(home.models(), [""; 0]);
    home.assert_true();
}

#[test]
fn what_was_changed_is_named() {
    let home = Home::new();
    let name = home.save();
    let dir = home.path("complete").join(&name);
    let path = dir.join("config.json");
    assert!(std::fs::metadata(&path).unwrap().permissions().readonly());
    let weights = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, bytes).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(dir.join("stray\n.txt"), "x").unwrap();
    let output = home.run(&["verify", &name]);
    assert_eq!(output.status.code(), Some(6));
    let text = String::from_utf8(output.stdout).unwrap();
    filtered(&home, &text, |text| insta::assert_snapshot!("verify_changed", text));
    let output = home.run(&["verify", &name, "--rebuild", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["rebuild"]["changed_tensors"].as_array().unwrap().len(), 1);
}

#[test]
fn a_lost_catalogue_comes_back_from_the_manifests() {
    let home = Home::new();
    let (first, second) = (home.save(), home.save());
    let before = home.json(&["list", "--json"]);
    for file in ["catalogue.db", "catalogue.db-wal", "catalogue.db-shm"] {
        let _ = std::fs::remove_file(home.path(file));
    }
    assert_eq!(home.json(&["list", "--json"]), before);
    assert_eq!(home.json(&["base", "list", "--json"]).as_array().unwrap().len(), 1);
    // What came back is enough to save again.
    home.save();
    // A directory taken away, one put in, one that is nothing.
    let aside = home.dir.path().join("aside");
    std::fs::rename(home.path("complete").join(&first), &aside).unwrap();
    std::fs::create_dir(home.path("complete").join("notes")).unwrap();
    let output = home.run(&["registry", "check"]);
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8(output.stdout).unwrap().contains(&format!("{first}: listed, but gone")));
    home.ok(&["registry", "check", "--repair"]);
    assert!(!home.models().contains(&first) && home.models().contains(&second));
    std::fs::rename(&aside, home.path("complete").join(&first)).unwrap();
    home.ok(&["registry", "check", "--repair"]);
    assert!(home.models().contains(&first));
}

#[test]
fn room_that_kept_ggufs_take_can_be_had_again() {
    let home = Home::new();
    let (first, second) = (home.save(), home.save());
    let make = |name: &str| home.json(&["gguf", name, "--quantization", "q8_0", "--json"]);
    let made = make(&first);
    make(&second);
    let path = std::path::Path::new(made["path"].as_str().unwrap());
    let would = home.json(&["registry", "clean", "--dry-run", "--json"]);
    assert_eq!((would["files"].as_array().unwrap().len(), &would["removed"]), (2, &Value::Bool(false)));
    assert!(path.is_file());
    let text = home.ok(&["registry", "clean", &first]);
    assert!(text.starts_with(&format!("{first}: q8_0, ")) && text.contains("1 GGUF files, "), "{text}");
    assert!(!path.exists());
    assert_eq!(home.json(&["registry", "clean", "--json"])["files"][0]["model"], second.as_str());
    assert_eq!(home.json(&["registry", "clean", "--json"])["files"], serde_json::json!([]));
    let again = make(&first);
    assert_eq!((&again["sha256"], &again["reused"]), (&made["sha256"], &Value::Bool(false)));
    assert_eq!(home.run(&["registry", "clean", "nobody"]).status.code(), Some(3));
}

#[test]
fn deleting_asks_and_keeps_what_is_used() {
    let home = Home::new();
    let name = home.save();
    assert_eq!(home.run(&["delete", &name]).status.code(), Some(2), "nobody to ask");
    // A Complete Model can be a base; while it is being saved from, it stays.
    let dir = home.path("complete").join(&name);
    home.ok(&["base", "add", dir.to_str().unwrap(), "--name", "second"]);
    let customized = home.json(&["customized", "add", ADAPTER, "--base", "second", "--json"]);
    let mut child = home
        .command(&["save", customized["name"].as_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env("TENON_FAULT", "wait:8")
        .spawn()
        .unwrap();
    let start = Instant::now();
    while home.json(&["jobs", "--json"]).as_array().unwrap().len() < 2 {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = home.run(&["delete", &name, "--yes"]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{err}");
    assert!(err.contains("it is the base of Saving"), "{err}");
    child.kill().unwrap();
    child.wait().unwrap();
    home.settle();
    home.ok(&["delete", &name, "--yes"]);
    assert!(!dir.exists());
    home.assert_true();
}

#[test]
fn a_base_that_changed_since_it_was_registered_is_not_saved_as_what_it_was() {
    let home = Home::new();
    let base = home.dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for entry in std::fs::read_dir(repository().join(BASE)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, base.join(path.file_name().unwrap())).unwrap();
    }
    home.ok(&["base", "add", base.to_str().unwrap(), "--name", "mine"]);
    let customized = home.json(&["customized", "add", ADAPTER, "--base", "mine", "--json"]);
    let shard = base.join("model-00002-of-00003.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let output = home.run(&["save", customized["name"].as_str().unwrap()]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{err}");
    assert!(err.contains("mine is not what it was when it was registered"), "{err}");
    assert!(err.contains("model-00002-of-00003.safetensors"), "{err}");
    assert_eq!(home.models(), [""; 0]);
    home.assert_true();
}

#[test]
fn names_that_do_not_exist_or_must_not_are_refused() {
    let home = Home::new();
    let code = |arguments: &[&str]| home.run(arguments).status.code();
    assert_eq!(code(&["show", "nothing"]), Some(3));
    assert_eq!(code(&["show", "../../etc"]), Some(3));
    assert_eq!(code(&["path", "x/../y"]), Some(3));
    assert_eq!(code(&["save", "nothing"]), Some(3));
    assert_eq!(code(&["base", "add", BASE, "--name", "../x"]), Some(2));
    assert_eq!(code(&["base", "add", BASE, "--name", "CON"]), Some(2));
    assert_eq!(code(&["base", "add", "/nonexistent"]), Some(3));
    let output = home.run(&["save", ADAPTER]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("tenon save fixtures/kjv-llama/adapter-lora --base DIR"), "{err}");
    home.ok(&["base", "add", BASE, "--name", "kjv"]);
    assert_eq!(code(&["base", "add", ADAPTER, "--name", "kjv2"]), Some(3), "an adapter is no base");
    assert_eq!(code(&["base", "add", BASE, "--name", "KJV"]), Some(5), "the same name in other letters");
    let dora = "fixtures/peft-golden";
    assert_eq!(code(&["customized", "add", dora, "--base", "kjv"]), Some(3), "no adapter there");
    home.assert_true();
}

#[test]
fn completions_and_man_pages_are_written() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(home.ok(&["completions", shell]).contains("tenon"), "{shell}");
    }
    let man = home.dir.path().join("man");
    home.ok(&["man", man.to_str().unwrap()]);
    for page in ["tenon.1", "tenon-save.1", "tenon-base-add.1"] {
        assert!(std::fs::read_to_string(man.join(page)).unwrap().contains(".TH"), "{page}");
    }
}
