//! Templates and Modelfiles give what Ollama's own packages gave (`fixtures/make_templates.py`).

#![allow(clippy::unwrap_used)] // tests

use serde_json::{Value as Json, json};
use tenon_deploy::template::{Conversation, DeploymentTemplate, PromptTemplate};

fn fixture(name: &str) -> Json {
    let path = format!("{}/../../fixtures/templates/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn templates_are_taken_and_rendered_alike() {
    let fixture = fixture("go.json");
    let conversations: Vec<Conversation> = serde_json::from_value(fixture["conversations"].clone()).unwrap();
    let mut compared = 0;
    for case in fixture["cases"].as_array().unwrap() {
        let text = case["template"].as_str().unwrap();
        for (conversation, expected) in conversations.iter().zip(case["expect"].as_array().unwrap()) {
            let found = match PromptTemplate::parse(text) {
                Err(_) => json!({"refused": true}),
                Ok(template) => match template.render(conversation) {
                    Err(_) => json!({"failed": true}),
                    Ok(text) => json!({"text": text}),
                },
            };
            assert_eq!(&found, expected, "{text}");
            compared += 1;
        }
    }
    assert!(compared > 700, "{compared}");
}

#[test]
fn modelfiles_are_read_alike() {
    let mut compared = 0;
    for case in fixture("modelfiles.json").as_array().unwrap() {
        let text = case["modelfile"].as_str().unwrap();
        let found = match DeploymentTemplate::parse("Modelfile", text) {
            Err(_) => json!({"refused": true}),
            Ok(read) => {
                let mut request = json!({});
                let mut put = |key: &str, value: Json| {
                    let empty = [Json::Null, json!([]), json!({}), json!("")];
                    if !empty.contains(&value) {
                        request[key] = value;
                    }
                };
                put("template", json!(read.template.as_ref().map(PromptTemplate::text)));
                put("system", json!(read.system));
                put("license", json!(read.licenses));
                put("messages", json!(read.messages));
                put("renderer", json!(read.renderer));
                put("parser", json!(read.parser));
                put("requires", json!(read.requires));
                // Go writes 10.0 as 10.
                put(
                    "parameters",
                    read.parameters.into_iter().map(|(name, value)| (name, plain(value))).collect(),
                );
                json!({"request": request})
            }
        };
        assert_eq!(found, case["expect"], "{text:?}");
        compared += 1;
    }
    assert!(compared > 40, "{compared}");
}

fn plain(value: Json) -> Json {
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 => json!(number as i64),
        _ => value,
    }
}
