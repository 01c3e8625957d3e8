//! What fails, and what is cancelled, leaves no Live Model, and says what it leaves there.

use tenon_standin::{Act, Rule};

use super::crashes::STATES;
use super::*;

#[test]
fn cancelled_in_any_state_nothing_is_live_and_nothing_is_there() {
    for (request, state) in STATES {
        for by_signal in [false, true] {
            let server = StandIn::start().unwrap();
            let home = Home::new(&server.url());
            server.rule(request, None, Act::Hang);
            let mut child = home.start(&home.deploy(&[]));
            let job = home.wait_for(state);
            if by_signal {
                let pid = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
            } else {
                home.ok(&["jobs", "cancel", job["id"].as_str().unwrap()]);
            }
            assert_eq!(child.wait().unwrap().code(), Some(130), "{state}");
            let job = home.deployments().remove(0);
            assert_eq!(job["state"], "cancelled", "{state}");
            let left = job["left_there"].as_array().cloned().unwrap_or_default();
            // Files that were sent cannot be taken back; they are told of.
            let sent = server.uploaded_bytes() > 0;
            assert_eq!(!left.is_empty(), sent && job["sent_bytes"] != 0, "{state}: {job:#}");
            home.assert_true(&server);
            // And then it goes live all the same.
            server.behave();
            home.ok(&home.deploy(&[]));
            home.assert_true(&server);
        }
    }
}

#[test]
fn failed_anywhere_nothing_is_live_nothing_is_there_and_there_is_a_reason() {
    let status = |code, body: &str| Act::Status { code, headers: vec![], body: body.into() };
    for (on, after, act, word) in [
        ("GET /api/version", 0, status(401, ""), "--api-key-env"),
        ("GET /api/version", 0, status(404, ""), "is no Ollama server"),
        ("POST /api/blobs", 0, status(413, "<title>413 Too Large</title>"), "limits the size"),
        ("POST /api/blobs", 0, status(500, r#"{"error":"no space left on device"}"#), "disk is full"),
        ("POST /api/create", 0, status(400, r#"{"error":"template error: unclosed"}"#), "template error"),
        ("POST /api/create", 0, Act::CutAnswer(3), "ended early"),
        ("POST /api/create", 0, Act::Add(vec![b"{\"error\":\"late\"}\n".to_vec()]), "late"),
        ("POST /api/create", 0, Act::Swallow, "no word of success"),
        ("POST /api/generate", 0, status(500, r#"{"error":"llama runner: out of memory"}"#), "out of memory"),
        ("GET /api/tags", 2, status(403, ""), "status 403"),
    ] {
        let server = StandIn::start().unwrap();
        let home = Home::new(&server.url());
        // The last one lets only its own question fail, so that clearing away works.
        let times = (after > 0).then_some(1);
        server.add_rule(Rule { on: on.into(), after, times, act });
        let (code, error) = home.fails(&home.deploy(&[]));
        assert!(code == 1 && error.contains(word) && error.contains("hint:"), "{on}: {code} {error}");
        let job = home.deployments().remove(0);
        assert_eq!(job["state"], "failed");
        assert!(job["reason"].is_string() && job["remedy"].is_string(), "{job:#}");
        home.assert_true(&server);
    }
}

#[test]
fn what_cannot_be_cleared_away_is_told() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    let fault = || Act::Status { code: 500, headers: vec![], body: r#"{"error":"broken"}"#.into() };
    server.rule("POST /api/generate", None, fault());
    server.rule("DELETE /api/delete", None, fault());
    let (code, error) = home.fails(&home.deploy(&[]));
    assert!(code == 1 && error.contains("perhaps the model m:latest"), "{error}");
    let job = home.deployments().remove(0);
    assert!(job["left_there"].to_string().contains("m:latest"), "{job:#}");
    assert_eq!(home.live(), [Value::Null; 0]);
    assert_eq!(server.models().len(), 1, "reported, since it could not be removed");
}

#[test]
fn a_live_model_whose_successor_fails_is_not_called_live() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    home.ok(&home.deploy(&[]));
    let fault = Act::Status { code: 500, headers: vec![], body: r#"{"error":"out of memory"}"#.into() };
    server.rule("POST /api/generate", None, fault);
    let q8 = [
        "deploy",
        &home.model,
        "--env",
        "env",
        "--quantization",
        "q8_0",
        "--quantize-on",
        "server",
        "--as",
        "m",
    ];
    let (code, error) = home.fails(&q8);
    assert!(code == 1 && error.contains("in the place of the one that was there before"), "{error}");
    assert_eq!(home.live()[0]["condition"], "changed");
    server.behave();
    home.ok(&q8);
    assert_eq!((home.live().len(), home.live()[0]["condition"].clone()), (1, "live".into()));
}

#[test]
fn a_failed_deployment_can_be_tried_again_from_where_it_was() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    server.rule("POST /api/create", None, Act::CutAnswer(0));
    home.fails(&home.deploy(&[]));
    let sent = server.uploaded_bytes();
    server.behave();
    home.ok(&home.deploy(&[]));
    assert_eq!(server.uploaded_bytes(), sent, "the files were there");
    home.assert_true(&server);
}
