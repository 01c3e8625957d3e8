//! The stand-ins answer as the real Ollama did when `fixtures/make_ollama_exchanges.py` asked it, and as the
//! real vLLM did when `fixtures/make_vllm_exchanges.py` did: the same statuses and types, the same fields in
//! each object, the same sentences where clients read them.
#![allow(clippy::unwrap_used)] // tests

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::Value;
use tenon_checkpoint::Digest;
use tenon_standin::StandIn;
use tenon_standin::served::{Server, completion};

const FILE: &[u8] = b"GGUF and so on";

/// Status, type and body.
fn ask(url: &str, method: &str, path: &str, body: &[u8]) -> (u64, String, String) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap_or_default();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut whole = String::new();
    if head.contains("transfer-encoding: chunked") {
        let mut rest = body;
        while let Some((length, after)) = rest.split_once("\r\n") {
            let length = usize::from_str_radix(length, 16).unwrap();
            whole += &after[..length];
            rest = &after[(length + 2).min(after.len())..];
        }
    } else {
        whole = body.to_string();
    }
    (status, kind.to_string(), whole)
}

/// The objects of an answer.
fn objects(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text).into_iter::<Value>().map_while(Result::ok).collect()
}

/// Fails where `found` lacks something that clients may look for in what was recorded.
fn assert_alike(what: &str, found: &Value, recorded: &Value) {
    match recorded {
        Value::Object(fields) => {
            for name in [
                "error",
                "status",
                "models",
                "version",
                "digest",
                "size",
                "name",
                "modelfile",
                "template",
                "done",
                "response",
                "eval_count",
                "message",
                "content",
            ] {
                if let Some(value) = fields.get(name) {
                    assert!(found.get(name).is_some(), "{what}: {name} is missing in {found}");
                    assert_alike(what, &found[name], value);
                }
            }
        }
        Value::Array(list) => {
            assert_eq!(found.as_array().map(Vec::len), Some(list.len()), "{what}: {found}");
            list.iter().zip(found.as_array().unwrap()).for_each(|(r, f)| assert_alike(what, f, r));
        }
        other => assert_eq!(
            std::mem::discriminant(found),
            std::mem::discriminant(other),
            "{what}: {found} where there was {other}"
        ),
    }
}

#[test]
fn it_answers_as_ollama_does() {
    let text = include_str!("../../../fixtures/ollama-exchanges/exchanges.json");
    let text = text.replace("GGUF-DIGEST", &Digest::of(FILE).to_string());
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let server = StandIn::start().unwrap();
    for exchange in recorded["exchanges"].as_array().unwrap() {
        let what = exchange["what"].as_str().unwrap();
        let body = match &exchange["body"] {
            Value::Null => vec![],
            Value::String(_) => FILE.to_vec(),
            body => body.to_string().into_bytes(),
        };
        let text = |name: &str| exchange[name].as_str().unwrap_or_default();
        let (status, kind, answer) = ask(&server.url(), text("method"), text("path"), &body);
        assert_eq!(status, exchange["status"].as_u64().unwrap(), "{what}: {answer}");
        let recorded = objects(text("answer"));
        if recorded.is_empty() {
            continue;
        }
        assert_eq!(kind.split(';').next(), text("type").split(';').next(), "{what}");
        let found = objects(&answer);
        assert_eq!(found.len() > 1, recorded.len() > 1, "{what}: {answer}");
        assert_alike(what, found.first().unwrap(), &recorded[0]);
        assert_alike(what, found.last().unwrap(), recorded.last().unwrap());
        // The sentences by which Tenon tells refusals apart.
        for sentence in ["digest mismatch", "invalid model name", "not found", "success"] {
            assert_eq!(answer.contains(sentence), text("answer").contains(sentence), "{what}: {answer}");
        }
        if let (Some(found), Some(recorded)) =
            (found[0]["modelfile"].as_str(), recorded[0]["modelfile"].as_str())
        {
            let from = |modelfile: &str| {
                modelfile.lines().find(|line| line.starts_with("FROM ")).map(str::to_string)
            };
            assert_eq!(from(found), from(recorded), "{what}");
        }
    }
}

/// What clients read of a list, an answer or an error of vLLM's.
fn read_of_vllm(answer: &str) -> Value {
    let Ok(object) = serde_json::from_str::<Value>(answer) else { return answer.into() };
    let fields = |of: &Value, names: &[&str]| -> Value {
        names
            .iter()
            .map(|name| (name.to_string(), of[*name].clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    if let Some(list) = object["data"].as_array() {
        return list
            .iter()
            .map(|model| fields(model, &["id", "object", "owned_by", "root", "parent"]))
            .collect();
    }
    if object["choices"].is_array() {
        // What is said is the model's affair.
        return serde_json::json!({ "choices": object["choices"].as_array().map(Vec::len), "usage": object["usage"]["completion_tokens"] });
    }
    if let Some(said) = object["error"]["message"].as_str() {
        // Vllm goes on to tell what there is.
        let sentence = said.split_inclusive('.').next().unwrap_or_default();
        return serde_json::json!({ "message": sentence, "code": object["error"]["code"] });
    }
    object
}

#[test]
fn it_answers_as_vllm_does() {
    let (dir, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("base"), "").unwrap();
    std::fs::write(adapter.path().join("adapter_config.json"), "{}").unwrap();
    let text = include_str!("../../../fixtures/vllm-exchanges/exchanges.json");
    let text = text.replace("ADAPTER", &adapter.path().display().to_string());
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let server = Server::listing(dir.path(), completion("I"));
    for exchange in recorded["exchanges"].as_array().unwrap() {
        let what = exchange["what"].as_str().unwrap();
        let body = match &exchange["body"] {
            Value::Null => vec![],
            body => body.to_string().into_bytes(),
        };
        let text = |name: &str| exchange[name].as_str().unwrap_or_default();
        let (status, _, answer) = ask(&server.url, text("method"), text("path"), &body);
        assert_eq!(status, exchange["status"].as_u64().unwrap(), "{what}: {answer}");
        assert_eq!(read_of_vllm(&answer), read_of_vllm(text("answer")), "{what}");
    }
}
