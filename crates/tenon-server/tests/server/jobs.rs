//! Work in the background: begun, watched, stopped, taken up again; and what happens, told as it does.

use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tenon_server::{Limits, Options};

use crate::served::{Served, fixtures};

/// Events of a stream, as they come.
struct Events(BufReader<std::net::TcpStream>);

#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

impl Events {
    fn open(served: &Served, last: Option<&str>) -> Self {
        let mut stream = served.connect();
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: {}\r\n{last}\r\n", served.address);
        stream.write_all(request.as_bytes()).unwrap();
        Self(BufReader::new(stream))
    }

    fn next(&mut self) -> Event {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
            let line = line.trim_end();
            if let Some(value) = line.strip_prefix("id: ") {
                id = value.into();
            } else if let Some(value) = line.strip_prefix("event: ") {
                name = value.into();
            } else if let Some(value) = line.strip_prefix("data: ") {
                return Event { id, name, data: serde_json::from_str(value).unwrap() };
            }
        }
    }
}

#[test]
fn a_saving_is_told_from_queue_to_model_and_can_be_replayed() {
    let served = Served::new();
    let customized = served.register();
    let mut events = Events::open(&served, None);
    let hello = events.next();
    assert_eq!(hello.name, "hello");
    let queued = served.post("savings", &json!({ "customized": customized }));
    assert_eq!(queued.status, 202, "{}", queued.text());
    let job = queued.json();
    assert_eq!((&job["kind"], &job["state"]), (&json!("saving"), &json!("queued")));
    assert_eq!(queued.header("location"), format!("/api/v1/jobs/{}", job["id"].as_str().unwrap()));
    let mut seen = vec![];
    loop {
        let event = events.next();
        let is_end = event.name == "job" && event.data["state"] == "done";
        seen.push(event);
        if is_end {
            break;
        }
    }
    assert!(
        seen.iter().any(|event| event.name == "complete-model" && event.data["action"] == "added"),
        "{seen:?}"
    );
    let states: Vec<_> =
        seen.iter().filter(|e| e.name == "job").map(|e| e.data["state"].as_str().unwrap()).collect();
    assert!(["queued", "running"].contains(&states[0]) && states.len() > 1, "{states:?}");
    assert_eq!(states.last(), Some(&"done"));
    // From the middle on, the same again.
    let mut again = Events::open(&served, Some(&seen[0].id));
    for event in &seen[1..] {
        let replayed = again.next();
        assert_eq!((&replayed.id, &replayed.name, &replayed.data), (&event.id, &event.name, &event.data));
    }
    assert_eq!(Events::open(&served, Some("1-1")).next().name, "reset", "of another process");
    let done = served.ended(job["id"].as_str().unwrap());
    assert_eq!((&done["share"], &done["state"]), (&json!(1.0), &json!("done")));
    let model = done["model"].as_str().unwrap();
    let listed = served.get("complete-models").json();
    assert_eq!(listed["items"][0]["name"], model);
    assert_eq!(listed["items"][0]["state"], "whole");
    let log = served.get(&format!("jobs/{}/log", job["id"].as_str().unwrap())).json();
    let steps: Vec<_> =
        log["lines"].as_array().unwrap().iter().map(|line| line["step"].as_str().unwrap()).collect();
    assert!(
        steps.starts_with(&["queued", "started"]) && steps.ends_with(&["done"]) && steps.contains(&"shard"),
        "{steps:?}"
    );
    // The card in all its forms, and the files as they were saved.
    let card = |format: &str| served.get(&format!("complete-models/{model}/card?format={format}"));
    assert_eq!(card("json").json()["name"], model);
    assert!(card("md").text().starts_with("---\n") && card("html").text().starts_with("<!doctype html>"));
    assert!(card("html").header("content-security-policy").contains("style-src 'sha256-"));
    assert!(card("fragment").text().contains("<h2>"));
    card("pdf").is_problem(400, "invalid_query");
    let verified = served.ask("POST", &format!("/api/v1/complete-models/{model}/verify"), &[], None).json();
    assert_eq!(verified["intact"], true, "{verified}");
    assert_eq!(served.ask("DELETE", &format!("/api/v1/complete-models/{model}"), &[], None).status, 204);
    assert_eq!(served.get("complete-models").json()["total"], 0);
    served.get(&format!("complete-models/{model}")).is_problem(404, "not_found");
}

#[test]
fn what_waits_can_be_cancelled_and_begun_again() {
    let options = Options { allow_paths: vec![fixtures()], work: false, ..Options::default() };
    let served = Served::with(options);
    let customized = served.register();
    let job = served.post("savings", &json!({ "customized": customized })).json();
    let id = job["id"].as_str().unwrap();
    let act = |id: &str, verb: &str| served.ask("POST", &format!("/api/v1/jobs/{id}/{verb}"), &[], None);
    act(id, "retry").is_problem(409, "not_retryable");
    assert_eq!(act(id, "cancel").status, 202);
    assert_eq!(served.ended(id)["state"], "cancelled");
    act(id, "cancel").is_problem(409, "not_open");
    let again = act(id, "retry");
    assert_eq!(again.status, 202, "{}", again.text());
    assert_eq!((&again.json()["customized"], &again.json()["state"]), (&json!(customized), &json!("queued")));
    assert_eq!(served.get("jobs?state=queued").json()["total"], 1);
    served
        .ask("DELETE", &format!("/api/v1/customized-models/{customized}"), &[], None)
        .is_problem(409, "in_use");
}

#[test]
fn what_another_process_does_shows() {
    let served = Served::new();
    served.register();
    let mut events = Events::open(&served, None);
    assert_eq!(events.next().name, "hello");
    // Another handle on the same home, as the command line has one.
    let other = tenon::Tenon::open(served.tenon.registry().home().root()).unwrap();
    other
        .registry()
        .remove_customized(served.get("customized-models").json()["items"][0]["name"].as_str().unwrap())
        .unwrap();
    let event = events.next();
    assert_eq!((&*event.name, &event.data["action"]), ("customized-model", &json!("removed")));
    assert_eq!(served.get("customized-models").json()["total"], 0);
}

#[test]
fn a_server_that_stops_leaves_its_jobs_to_the_next() {
    let home = tempfile::tempdir().unwrap();
    let options = |work| Options { allow_paths: vec![fixtures()], work, ..Options::default() };
    let mut served = Served::at(home.path(), options(false));
    let customized = served.register();
    let ids: Vec<_> = (0..8)
        .map(|_| {
            served.post("savings", &json!({ "customized": customized })).json()["id"]
                .as_str()
                .unwrap()
                .to_string()
        })
        .collect();
    served.stop();
    // This one begins with them and is stopped at once.
    let mut served = Served::at(home.path(), options(true));
    let clock = Instant::now();
    while served.get("jobs?state=running").json()["total"] == 0
        && served.get("jobs?state=done").json()["total"] == 0
    {
        assert!(clock.elapsed() < Duration::from_secs(20));
    }
    let clock = Instant::now();
    served.stop();
    assert!(clock.elapsed() < Duration::from_secs(15), "{:?}", clock.elapsed());
    let tenon = tenon::Tenon::open(home.path()).unwrap();
    for saving in tenon.registry().all::<tenon::Saving>().unwrap() {
        let fine = [tenon::JobState::Queued, tenon::JobState::Done].contains(&saving.state);
        assert!(fine, "{saving:?}");
    }
    drop(tenon);
    let served = Served::at(home.path(), options(true));
    for id in ids {
        let job = served.ended(&id);
        assert_eq!(job["state"], "done", "{job}");
    }
}

#[test]
fn streams_end_when_the_server_stops() {
    let limits = Limits { grace: Duration::from_secs(20), ..Limits::default() };
    let mut served = Served::with(Options { limits, ..Options::default() });
    let mut events = Events::open(&served, None);
    events.next();
    let clock = Instant::now();
    served.stop();
    assert!(clock.elapsed() < Duration::from_secs(10), "{:?}", clock.elapsed());
}
