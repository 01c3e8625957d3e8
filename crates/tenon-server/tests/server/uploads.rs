//! Adapters that come through the browser.

use std::io::{Read, Write};
use std::time::Duration;

use serde_json::json;
use tenon_server::{Limits, Options};

use crate::served::{Answer, Served, fixtures};

const BOUNDARY: &str = "----------boundary";

fn part(name: &str, bytes: &[u8]) -> Vec<u8> {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    [head.as_bytes(), bytes, b"\r\n"].concat()
}

fn send(served: &Served, query: &str, headers: &str, parts: &[Vec<u8>]) -> Answer {
    let body = [parts.concat(), format!("--{BOUNDARY}--\r\n").into_bytes()].concat();
    let head = format!(
        "POST /api/v1/customized-models/upload?{query} HTTP/1.1\r\nConnection: close\r\nHost: {}\r\n{headers}\
         Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {}\r\n\r\n",
        served.address,
        body.len()
    );
    served.raw(&[head.as_bytes(), &body].concat())
}

fn adapter() -> [Vec<u8>; 2] {
    ["adapter_config.json", "adapter_model.safetensors"]
        .map(|name| part(name, &std::fs::read(fixtures().join("kjv-llama/adapter-lora").join(name)).unwrap()))
}

fn with_base(options: Options) -> Served {
    let served = Served::with(Options { allow_paths: vec![fixtures()], ..options });
    let base = json!({ "path": fixtures().join("kjv-llama/base"), "name": "kjv" });
    assert_eq!(served.post("base-models", &base).status, 201);
    served
}

/// What lies in the results, hidden or not.
fn left(served: &Served) -> Vec<String> {
    let dir = std::fs::read_dir(served.tenon.registry().home().results()).unwrap();
    dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_adapter_is_uploaded_registered_and_saved() {
    let served = with_base(Options::default());
    let added = send(&served, "name=psalms&base=kjv", "", &adapter());
    assert_eq!(added.status, 201, "{}", added.text());
    let name = added.json()["name"].as_str().unwrap().to_string();
    assert!(name.starts_with("kjv_psalms_"), "{name}");
    assert_eq!(added.header("location"), format!("/api/v1/customized-models/{name}"));
    let queued = served.post("savings", &json!({ "customized": name })).json();
    assert_eq!(served.ended(queued["id"].as_str().unwrap())["state"], "done");
    // Byte for byte what was sent.
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let sent = std::fs::read(fixtures().join("kjv-llama/adapter-lora").join(file)).unwrap();
        assert!(served.get(&format!("results/psalms/files/{file}")).body == sent, "{file}");
    }
    send(&served, "name=psalms&base=kjv", "", &adapter()).is_problem(409, "name_taken");
    assert_eq!(left(&served), ["psalms"]);
}

#[test]
fn what_is_no_adapter_or_does_not_fit_is_refused_and_nothing_of_it_stays() {
    let served = with_base(Options::default());
    let [config, weights] = adapter();
    let name = "name=psalms&base=kjv";
    for (parts, code) in [
        (vec![], "invalid_input"),
        (vec![config.clone()], "invalid_input"),
        (vec![weights.clone()], "invalid_input"),
        (vec![config.clone(), part("adapter_model.safetensors", b"no")], "invalid_input"),
        (vec![part("adapter_config.json", b"{"), weights.clone()], "invalid_input"),
        (vec![config.clone(), weights.clone(), weights.clone()], "invalid_input"),
        (vec![config.clone(), weights.clone(), part("adapter_model.bin", b"\x80\x02}")], "invalid_input"),
        (vec![config.clone(), part("../adapter_model.safetensors", b"")], "invalid_input"),
        (vec![config.clone(), part("/tmp/adapter_model.safetensors", b"")], "invalid_input"),
        (vec![config.clone(), part("..\\adapter_model.safetensors", b"")], "invalid_input"),
        (vec![config.clone(), part(".safetensors", b"")], "invalid_input"),
        (vec![config.clone(), part("NUL.safetensors", b"")], "invalid_input"),
        (vec![config.clone(), part("", b"")], "invalid_input"),
    ] {
        let answer = send(&served, name, "", &parts);
        answer.is_problem(422, code);
        assert!(!answer.text().contains(".tenon-"), "named as it was on the way: {}", answer.text());
        assert_eq!(left(&served), Vec::<String>::new());
    }
    // One that fits another model.
    let other = fixtures().join("peft-combine/a");
    let parts = ["adapter_config.json", "adapter_model.safetensors"]
        .map(|name| part(name, &std::fs::read(other.join(name)).unwrap()));
    send(&served, name, "", &parts).is_problem(422, "invalid_input");
    send(&served, "name=psalms&base=nobody", "", &adapter()).is_problem(404, "not_found");
    for bad in ["..", ".hidden", "a%2Fb", "a%00", "CON", ""] {
        send(&served, &format!("name={bad}&base=kjv"), "", &adapter()).is_problem(422, "invalid_name");
    }
    send(&served, "base=kjv", "", &adapter()).is_problem(400, "invalid_query");
    let json = served.post("customized-models/upload?name=a&base=kjv", &json!({}));
    json.is_problem(415, "unsupported_media_type");
    send(&served, name, "Origin: http://evil.example\r\n", &adapter()).is_problem(403, "cross_origin");
    assert_eq!(left(&served), Vec::<String>::new());
    assert_eq!(served.get("customized-models").json()["total"], 0);
}

#[test]
fn an_upload_that_is_too_large_breaks_off_or_stalls_leaves_nothing() {
    let limits = Limits {
        upload_bytes: 10_000,
        uploads: 1,
        stall_time: Duration::from_millis(400),
        ..Limits::default()
    };
    let served = with_base(Options { limits, ..Options::default() });
    let [config, _] = adapter();
    let large = part("adapter_model.safetensors", &vec![0; 3 << 20]);
    send(&served, "name=large&base=kjv", "", &[config.clone(), large]).is_problem(413, "body_too_large");
    assert_eq!(left(&served), Vec::<String>::new());

    let begin = |length: usize| {
        let mut stream = served.connect();
        let head = format!(
            "POST /api/v1/customized-models/upload?name=slow&base=kjv HTTP/1.1\r\nConnection: close\r\nHost: {}\r\n\
             Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {length}\r\n\r\n",
            served.address
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&config).unwrap();
        stream
    };
    let mut stalled = begin(1_000_000);
    std::thread::sleep(Duration::from_millis(150));
    send(&served, "name=other&base=kjv", "", &adapter()).is_problem(503, "busy");
    let mut text = String::new();
    stalled.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    assert_eq!(left(&served), Vec::<String>::new());

    drop(begin(1_000_000));
    let begun = std::time::Instant::now();
    while !left(&served).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(served.get("customized-models").json()["total"], 0);
}
