//! The document that describes the interface, and the pages.

use std::collections::BTreeSet;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use crate::served::Served;

#[test]
fn the_document_describes_every_operation_and_its_answers() {
    let served = Served::new();
    let document = served.get("openapi.json").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 20 && paths.keys().all(|path| path.starts_with("/api/v1/")), "{:?}", paths.keys());
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut ids = BTreeSet::new();
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{id} twice");
            assert!(operation["summary"].is_string(), "{method} {path}");
            let answers = operation["responses"].as_object().unwrap();
            assert!(answers.keys().any(|status| status.starts_with('2')), "{method} {path}");
            for (status, answer) in answers {
                if status.parse::<u16>().unwrap() >= 400 {
                    let schema = &answer["content"]["application/problem+json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Problem", "{method} {path} {status}");
                }
            }
        }
    }
    let mut references = vec![];
    collect(&document, &mut references);
    for reference in references {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        assert!(schemas.contains_key(name), "{reference} leads nowhere");
    }
}

fn collect<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            into.extend(object.get("$ref").and_then(Value::as_str));
            object.values().for_each(|value| collect(value, into));
        }
        Value::Array(array) => array.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}

#[test]
fn pages_load_nothing_from_elsewhere_and_have_no_script_in_them() {
    let served = Served::new();
    let mut to_see = vec!["/".to_string(), "/docs".to_string()];
    let mut seen = BTreeSet::new();
    while let Some(path) = to_see.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let answer = served.ask("GET", &path, &[], None);
        assert_eq!(answer.status, 200, "{path}");
        let text = answer.text();
        for elsewhere in ["https://", "http://", "//cdn", "@import", "eval(", "innerHTML", "document.write"] {
            let allowed = ["http://www.w3.org/", "\"http://\"", "http://127.0.0.1:11434", "https?:"];
            let text = allowed.iter().fold(text.clone(), |text, allowed| text.replace(allowed, ""));
            assert!(!text.contains(elsewhere), "{path} has {elsewhere}");
        }
        if answer.header("content-type").starts_with("text/html") {
            for inline in ["onclick=", "onload=", "<style", " style=", "javascript:"] {
                assert!(!text.contains(inline), "{path} has {inline}");
            }
            assert_eq!(
                text.matches("<script").count(),
                text.matches("<script type=\"module\" src=\"").count(),
                "{path}"
            );
        }
        let references = text.split(['"', '\'']).filter(|part| !part.contains(char::is_whitespace));
        for reference in references {
            let target = match reference {
                part if part.starts_with("script/") || part.starts_with("style/") || part == "logo.svg" => {
                    format!("/{part}")
                }
                part if part.starts_with("./") && part.ends_with(".js") => format!("/script/{}", &part[2..]),
                _ => continue,
            };
            to_see.push(target);
        }
    }
    assert!(seen.len() >= 20, "{seen:?}");
}

#[tokio::test]
async fn it_can_be_nested_into_another_service() {
    let home = tempfile::tempdir().unwrap();
    let tenon = tenon::Tenon::open(home.path()).unwrap();
    let app = Router::new().nest("/tenon", tenon_server::router(tenon));
    let get = |path: &str| {
        let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
        app.clone().oneshot(request)
    };
    let list = get("/tenon/api/v1/complete-models").await.unwrap();
    assert_eq!(list.status(), 200);
    let body: Value = serde_json::from_slice(&list.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(body["total"], 0);
    let page = get("/tenon/index.html").await.unwrap();
    assert_eq!(
        (page.status().as_u16(), page.headers()["content-type"].to_str().unwrap()),
        (200, "text/html; charset=utf-8")
    );
    let moved = get("/tenon").await.unwrap();
    assert_eq!(
        (moved.status().as_u16(), moved.headers()["location"].to_str().unwrap()),
        (308, "/tenon/index.html")
    );
    assert_eq!(get("/tenon/script/app.js").await.unwrap().status(), 200);
    // What the pages name is found from where they are.
    for (page, least) in [("index.html", 5), ("docs", 4)] {
        let body =
            get(&format!("/tenon/{page}")).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let named: Vec<_> =
            text.split('"').filter(|part| part.contains('.') && !part.contains([' ', ',', '>'])).collect();
        assert!(named.len() >= least, "{named:?}");
        for reference in named {
            assert!(!reference.starts_with('/'), "{page}: {reference}");
            assert_eq!(
                get(&format!("/tenon/{reference}")).await.unwrap().status(),
                200,
                "{page}: {reference}"
            );
        }
    }
    let environment = r#"{"name": "one", "kind": "ollama", "url": "http://127.0.0.1:1"}"#;
    let request = Request::post("/tenon/api/v1/environments")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Body::from(environment))
        .unwrap();
    let added = app.clone().oneshot(request).await.unwrap();
    let location = added.headers()["location"].to_str().unwrap();
    assert_eq!((added.status().as_u16(), location), (201, "/tenon/api/v1/environments/one"));
    assert_eq!(get(location).await.unwrap().status(), 200);
    let request =
        Request::get("/tenon/index.html").header("host", "evil.example").body(Body::empty()).unwrap();
    assert_eq!(app.clone().oneshot(request).await.unwrap().status(), 421);
}

#[test]
fn figures_for_prometheus() {
    let served = Served::new();
    served.get("jobs");
    let answer = served.get("metrics");
    let text = answer.text();
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"));
    for line in [
        "tenon_http_requests_total{method=\"GET\",route=\"/api/v1/jobs\",status=\"200\"} 1",
        "tenon_http_request_duration_seconds_count{method=\"GET\",route=\"/api/v1/jobs\"} 1",
        "tenon_complete_models 0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}
