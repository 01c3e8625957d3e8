//! What is measured: the cost of quantizing, the bytes that are sent, the files that are hashed.

use std::collections::BTreeMap;

use super::*;

fn quantized<'a>(home: &'a Home, quantization: &'a str, name: &'a str) -> Vec<&'a str> {
    vec!["deploy", &home.model, "--env", "env", "--quantization", quantization, "--as", name, "--json"]
}

#[test]
fn what_quantizing_cost_is_kept_and_shown_and_outlives_the_model() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    let directory = home.ok(&["path", &home.model]).trim().to_string();
    let before = std::fs::read(Path::new(&directory).join("README.md")).unwrap();
    assert!(!home.ok(&["card", &home.model]).contains("Live Models"));

    let live = home.json(&quantized(&home, "q4_K_M", "small"));
    home.json(&quantized(&home, "no_quantization", "large"));
    let on_server = ["--quantize-on", "server", "--quantization", "q8_0", "--as", "theirs", "--json"];
    let theirs = home.json(&[&["deploy", &home.model, "--env", "env"][..], &on_server].concat());
    assert!(theirs.get("quality").is_none(), "nothing was measured: {theirs:#}");

    // The same figures as converting the directory by itself gives.
    let out = home.dir.path().join("whole.gguf");
    let arguments =
        ["gguf", &directory, "--out", out.to_str().unwrap(), "--quantization", "q4_K_M", "--json"];
    let measured = home.json(&arguments)["measured"].as_array().unwrap().clone();
    let quality = &live["quality"];
    assert_eq!(quality["tensors"], measured.len());
    let error = |tensor: &Value| tensor["relative_error"].as_f64().unwrap();
    let worst = measured.iter().max_by(|a, b| error(a).total_cmp(&error(b))).unwrap();
    assert_eq!(quality["worst"][0]["name"], worst["name"]);
    assert_eq!(quality["worst"][0]["relative_error"], worst["relative_error"]);
    let mean = measured.iter().map(error).sum::<f64>() / measured.len() as f64;
    assert!((quality["mean_relative_error"].as_f64().unwrap() / mean - 1.0).abs() < 1e-9);
    let all = quality["relative_error"].as_f64().unwrap();
    assert!(all > 0.01 && all < error(worst), "{quality:#}");
    let db = quality["signal_to_noise"].as_f64().unwrap();
    assert!((db + 20.0 * all.log10()).abs() < 1e-6);
    let bits = quality["bits_per_weight"].as_f64().unwrap();
    let expected = live["bytes"].as_f64().unwrap() * 8.0 / quality["elements"].as_f64().unwrap();
    assert!((bits - expected).abs() < 1e-9 && bits > 4.0, "{bits}");
    let tensors: u64 =
        quality["types"].as_array().unwrap().iter().map(|t| t["tensors"].as_u64().unwrap()).sum();
    assert_eq!(tensors, measured.len() as u64);

    let shown = home.ok(&["live", "show", "small"]);
    let line = format!("{bits:.2} bits per weight, relative error {:.2} %", all * 100.0);
    assert!(shown.contains(&line) && shown.contains(worst["name"].as_str().unwrap()), "{shown}");
    let card = home.json(&["card", &home.model, "--format", "json"]);
    let deployed: BTreeMap<_, _> = card["deployed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|live| (live["model"].as_str().unwrap(), live))
        .collect();
    assert_eq!(deployed["small:latest"]["quantized"]["relative_error"], quality["relative_error"]);
    assert!(deployed["large:latest"].get("quantized").is_none());
    let card = home.ok(&["card", &home.model]);
    assert!(card.contains("What q4_K_M cost") && card.contains(worst["name"].as_str().unwrap()), "{card}");
    assert_eq!(card.matches(" cost\n").count(), 1, "{card}");
    let page = home.ok(&["card", &home.model, "--format", "html"]);
    let layers = quality["layers"].as_array().unwrap().len();
    assert_eq!(page.matches("<svg").count(), 2, "what the merge changed, and what quantizing cost");
    assert!(layers > 1 && page.matches("<rect").count() > layers);
    // Kept beside the file: one that is there already tells as well.
    let artifact = home.json(&["gguf", &home.model, "--quantization", "q4_K_M", "--json"]);
    assert_eq!((&artifact["reused"], &artifact["quality"]), (&true.into(), quality));
    assert_eq!(artifact["measured"].as_array().unwrap().len(), measured.len());

    // The model itself is as it was saved, and its figures outlive it.
    assert_eq!(std::fs::read(Path::new(&directory).join("README.md")).unwrap(), before);
    home.ok(&["verify", &home.model]);
    home.ok(&["delete", &home.model, "--yes"]);
    assert_eq!(home.json(&["live", "show", "small", "--json"])["quality"], *quality);
}

/// Sizes of a directory's files that are weights.
fn weights(dir: &Path) -> Vec<u64> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_weights =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors" || end == "gguf");
    files.filter(is_weights).map(|path| path.metadata().unwrap().len()).collect()
}

#[test]
fn each_file_is_hashed_once_in_its_life_and_sent_once() {
    let server = StandIn::start().unwrap();
    let home = Home { dir: tempfile::tempdir().unwrap(), model: String::new() };
    let log = home.dir.path().join("hashed");
    let run = |arguments: &[&str]| {
        let output = home.command(arguments).env("TENON_HASHED", &log).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    let template = home.dir.path().join("template.gotmpl");
    std::fs::write(&template, TEMPLATE).unwrap();
    run(&["base", "add", BASE, "--name", "base", "--template", template.to_str().unwrap()]);
    let saved = run(&["save", ADAPTER, "--base", BASE, "--json"]);
    let model = saved["saving"]["name"].as_str().unwrap();
    let complete = PathBuf::from(saved["path"].as_str().unwrap());
    run(&["env", "add", "env", "--kind", "ollama", "--url", &server.url()]);
    let deploy = |quantization: &str, name: &str| {
        run(&["deploy", model, "--env", "env", "--quantization", quantization, "--as", name, "--json"])
    };

    // Only the quantized bytes travel.
    let small = deploy("q4_K_M", "small");
    let artifact =
        PathBuf::from(run(&["gguf", model, "--quantization", "q4_K_M", "--json"])["path"].as_str().unwrap());
    let bytes = artifact.metadata().unwrap().len();
    let full: u64 = weights(&complete).iter().sum();
    assert!(bytes < full / 2, "{bytes} of {full}");
    assert_eq!((server.uploaded_bytes(), small["sent_bytes"].as_u64()), (bytes, Some(bytes)));
    // The same under another name, and the same again: nothing does.
    deploy("q4_K_M", "other");
    deploy("q4_K_M", "small");
    assert_eq!(server.uploaded_bytes(), bytes);
    // The files as they are, twice.
    deploy("no_quantization", "large");
    let sent = server.uploaded_bytes();
    assert!(sent > bytes + full, "{sent}");
    deploy("no_quantization", "large-again");
    assert_eq!(server.uploaded_bytes(), sent);
    run(&["live", "check", "small"]);

    // The adapter as one, twice, with its base quantized.
    let before = std::fs::read_to_string(&log).unwrap().lines().count();
    let registered = run(&["customized", "list", "--json"]);
    let customized = registered[0]["name"].as_str().unwrap();
    let adapter = ["deploy", customized, "--env", "env", "--as-adapter", "--quantization", "q8_0", "--json"];
    let sent = server.uploaded_bytes();
    let live = run(&[&adapter[..], &["--as", "adapted"]].concat());
    assert_eq!(Some(server.uploaded_bytes() - sent), live["bytes"].as_u64());
    assert_eq!(run(&[&adapter[..], &["--as", "adapted-again"]].concat())["sent_bytes"], 0);
    let mut made: Vec<u64> = ["base-base".to_string(), format!("adapter-{customized}")]
        .iter()
        .flat_map(|dir| weights(&home.path("artifacts").join(dir)))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let all_files = [root.join(BASE), root.join(ADAPTER)].map(|dir| std::fs::read_dir(dir).unwrap());
    let of_inputs: Vec<u64> =
        all_files.into_iter().flatten().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
    let text = std::fs::read_to_string(&log).unwrap();
    let mut since: Vec<u64> = text.lines().skip(before).map(|line| line.parse().unwrap()).collect();
    since.retain(|bytes| of_inputs.contains(bytes) || made.contains(bytes));
    made.sort();
    since.sort();
    assert_eq!(since, made, "what was made, once; of base and adapter nothing");

    // Of the weights of base, adapter, Complete Model and artifact, each was hashed once.
    let all = [root.join(BASE), root.join(ADAPTER), complete, artifact.parent().unwrap().into()];
    let mut once: Vec<u64> = all.iter().flat_map(|dir| weights(dir)).collect();
    once.sort();
    let hashed = std::fs::read_to_string(&log).unwrap();
    let mut hashed: Vec<u64> = hashed.lines().map(|line| line.parse().unwrap()).collect();
    hashed.retain(|bytes| once.contains(bytes));
    hashed.sort();
    assert_eq!(hashed, once);
}
