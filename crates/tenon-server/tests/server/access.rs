//! Who may ask: names, origins, tokens, sessions.

use serde_json::json;
use tenon_server::{Options, ServeError, Server, Token};

use crate::served::Served;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

fn guarded() -> Served {
    Served::with(Options { token: Some(Token::new(TOKEN)), ..Options::default() })
}

#[test]
fn a_name_that_was_rebound_gets_nothing() {
    let served = Served::new();
    for host in ["evil.example", "evil.example:7747", "127.0.0.1.evil.example", "192.168.0.1"] {
        for path in ["/", "/api/v1/complete-models", "/api/v1/session", "/script/app.js"] {
            served.ask("GET", path, &[("Host", host)], None).is_problem(421, "host_not_allowed");
        }
    }
    for host in ["localhost", "localhost:1", "127.0.0.1", "[::1]:7747"] {
        assert_eq!(
            served.ask("GET", "/api/v1/complete-models", &[("Host", host)], None).status,
            200,
            "{host}"
        );
    }
    let two = b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(served.raw(two).status, 400);
    let other_target = b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(served.raw(other_target).status, 400);
}

#[test]
fn pages_of_other_sites_change_nothing() {
    let served = Served::new();
    let body = json!({ "customized": "x" }).to_string();
    let own = format!("http://{}", served.address);
    for headers in [
        [("Origin", "http://evil.example")],
        [("Origin", "null")],
        [("Origin", "http://localhost:1")],
        [("Sec-Fetch-Site", "cross-site")],
        [("Sec-Fetch-Site", "same-site")],
    ] {
        served.ask("POST", "/api/v1/savings", &headers, Some(&body)).is_problem(403, "cross_origin");
        served.ask("DELETE", "/api/v1/complete-models/x", &headers, None).is_problem(403, "cross_origin");
    }
    served.ask("POST", "/api/v1/savings", &[("Origin", &own)], Some(&body)).is_problem(404, "not_found");
    // What a form of another site can send is no JSON.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        served
            .ask("POST", "/api/v1/savings", &[("Content-Type", kind)], Some(&body))
            .is_problem(415, "unsupported_media_type");
    }
    let answer = served.ask("GET", "/api/v1/jobs", &[("Origin", "http://evil.example")], None);
    assert!(
        answer.headers.iter().all(|(name, _)| !name.starts_with("access-control")),
        "no other site may read"
    );
}

#[test]
fn a_token_is_wanted_where_there_is_one() {
    let served = guarded();
    for path in ["complete-models", "jobs", "events", "metrics", "server", "complete-models/x/files/y"] {
        served.get(path).is_problem(401, "unauthorized");
    }
    assert_eq!(served.get("jobs").header("www-authenticate"), "Bearer");
    let with = |value: &str| served.ask("GET", "/api/v1/jobs", &[("Authorization", value)], None);
    assert_eq!(with(&format!("Bearer {TOKEN}")).status, 200);
    assert_eq!(with(&format!("bearer {TOKEN}")).status, 200);
    for wrong in [
        &format!("Bearer {}", &TOKEN[1..]),
        &format!("Bearer {TOKEN}0"),
        "Bearer ",
        &format!("Basic {TOKEN}"),
        TOKEN,
    ] {
        with(wrong).is_problem(401, "unauthorized");
    }
    // What needs none: the pages that ask for it, and whether the server lives.
    for path in ["/", "/script/app.js", "/api/v1/health", "/api/v1/session"] {
        assert_eq!(served.ask("GET", path, &[], None).status, 200, "{path}");
    }
}

#[test]
fn who_guesses_waits() {
    let served = guarded();
    let with = |token: &str| {
        served.ask("GET", "/api/v1/jobs", &[("Authorization", &format!("Bearer {token}"))], None)
    };
    for _ in 0..10 {
        with("wrong").is_problem(401, "unauthorized");
    }
    let refused = with(TOKEN);
    refused.is_problem(429, "too_many_requests");
    assert!((1..=61).contains(&refused.header("retry-after").parse::<u32>().unwrap()));
    served.post("session", &json!({ "token": TOKEN })).is_problem(429, "too_many_requests");
}

#[test]
fn a_session_is_a_cookie_and_a_token_against_forged_requests() {
    let served = guarded();
    served.post("session", &json!({ "token": "wrong" })).is_problem(401, "unauthorized");
    let opened = served.post("session", &json!({ "token": TOKEN }));
    assert_eq!(opened.status, 200, "{}", opened.text());
    let cookie = opened.header("set-cookie").to_string();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap();
    let csrf = opened.json()["csrf"].as_str().unwrap().to_string();
    assert_eq!(served.ask("GET", "/api/v1/jobs", &[("Cookie", cookie)], None).status, 200);
    served.ask("GET", "/api/v1/jobs", &[("Cookie", "tenon_session=0")], None).is_problem(401, "unauthorized");
    let body = json!({ "customized": "x" }).to_string();
    let post = |headers: &[(&str, &str)]| served.ask("POST", "/api/v1/savings", headers, Some(&body));
    post(&[("Cookie", cookie)]).is_problem(403, "csrf_token_missing");
    post(&[("Cookie", cookie), ("X-CSRF-Token", "")]).is_problem(403, "csrf_token_missing");
    post(&[("Cookie", cookie), ("X-CSRF-Token", &csrf[1..])]).is_problem(403, "csrf_token_missing");
    post(&[("Cookie", cookie), ("X-CSRF-Token", &csrf)]).is_problem(404, "not_found");
    let forged = [("Cookie", cookie), ("X-CSRF-Token", csrf.as_str()), ("Origin", "http://evil.example")];
    post(&forged).is_problem(403, "cross_origin");
    assert_eq!(served.ask("DELETE", "/api/v1/session", &[("Cookie", cookie)], None).status, 204);
    served.ask("GET", "/api/v1/jobs", &[("Cookie", cookie)], None).is_problem(401, "unauthorized");
}

#[test]
fn an_address_that_others_reach_is_refused_without_a_token() {
    let home = tempfile::tempdir().unwrap();
    let tenon = std::sync::Arc::new(tenon::Tenon::open(home.path()).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let open = Server::new(tenon.clone(), Options::default());
        let refused = open.bind("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
        assert!(matches!(refused, ServeError::NeedsToken { .. }), "{refused}");
        assert!(refused.to_string().contains("--token-file"));
        let guarded = Server::new(tenon, Options { token: Some(Token::new(TOKEN)), ..Options::default() });
        guarded.bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
    });
}

#[test]
fn every_answer_says_what_browsers_may_do_with_it() {
    let served = Served::new();
    for path in ["/", "/docs", "/script/app.js", "/api/v1/jobs", "/api/v1/none", "/none"] {
        let answer = served.ask("GET", path, &[], None);
        let policy = answer.header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("script-src 'self'"),
            "{path}: {policy}"
        );
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("x-frame-options"), "DENY", "{path}");
        assert!(!answer.header("x-request-id").is_empty(), "{path}");
    }
    let given = served.ask("GET", "/api/v1/jobs", &[("X-Request-Id", "my-id.1")], None);
    assert_eq!(given.header("x-request-id"), "my-id.1");
    let bad = served.ask("GET", "/api/v1/jobs", &[("X-Request-Id", "a b\"")], None);
    assert_ne!(bad.header("x-request-id"), "a b\"");
}
