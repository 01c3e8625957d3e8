//! `kill -9` at every step and in every state; two at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use tenon_standin::Act;

use super::*;

/// A request at which the server hangs, and the state that the deployment is in meanwhile.
pub(super) const STATES: [(&str, &str); 4] = [
    ("GET /api/version", "checking"),
    ("POST /api/blobs", "uploading"),
    ("POST /api/create", "creating"),
    ("POST /api/generate", "verifying"),
];

fn killed(output: &Output) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9)
}

#[test]
fn killed_at_any_step_it_goes_live_or_was_never_queued() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    let count = home.dir.path().join("count");
    let output = home
        .command(&home.deploy(&[]))
        .env("TENON_FAULT", format!("count:{}", count.display()))
        .output()
        .unwrap();
    assert!(output.status.success());
    let n: usize = std::fs::read_to_string(count).unwrap().parse().unwrap();
    assert!(n >= 8, "{n} steps");
    let resumed = AtomicUsize::new(0);
    for step in 1..=n {
        let server = StandIn::start().unwrap();
        let home = Home::new(&server.url());
        let output =
            home.command(&home.deploy(&[])).env("TENON_FAULT", format!("kill:{step}")).output().unwrap();
        // The heartbeat makes a step more or less.
        if !killed(&output) {
            continue;
        }
        let jobs = home.settle();
        assert!(jobs.len() <= 1);
        for job in &jobs {
            assert_eq!(job["state"], "live", "step {step}: {job:#}");
        }
        assert_eq!(home.live().len(), jobs.len(), "step {step}");
        resumed.fetch_add(jobs.len(), Ordering::Relaxed);
        home.assert_true(&server);
    }
    assert!(resumed.load(Ordering::Relaxed) >= n / 2);
}

#[test]
fn killed_in_any_state_it_is_resumed_and_sends_nothing_twice() {
    for (request, state) in STATES {
        let server = StandIn::start().unwrap();
        let home = Home::new(&server.url());
        server.rule(request, None, Act::Hang);
        let mut child = home.start(&home.deploy(&[]));
        home.wait_for(state);
        child.kill().unwrap();
        child.wait().unwrap();
        let before = server.uploaded_bytes();
        assert_eq!(home.live(), [Value::Null; 0], "{state}");
        server.behave();
        let output = home.run(&["jobs"]);
        let note = String::from_utf8_lossy(&output.stderr).into_owned();
        let jobs = home.settle();
        assert_eq!((&jobs[0]["state"], &jobs[0]["attempts"]), (&"live".into(), &2.into()), "{state} {note}");
        let model: u64 = server.models()[0].size;
        if ["creating", "verifying"].contains(&state) {
            assert_eq!((before, server.uploaded_bytes()), (model, model), "{state}: sent once");
        }
        home.assert_true(&server);
    }
}

#[test]
fn killed_three_times_it_is_given_up_and_says_what_may_be_left() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    server.rule("POST /api/generate", None, Act::Hang);
    let mut child = home.start(&home.deploy(&[]));
    for attempt in 1..=3 {
        let begin = Instant::now();
        // The list has it taken up by a worker after the first.
        let job = loop {
            let job = home.wait_for("verifying");
            if job["attempts"] == attempt {
                break job;
            }
            assert!(begin.elapsed() < Duration::from_secs(30));
        };
        let pid = job["pid"].as_i64().unwrap() as i32;
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    child.wait().unwrap();
    let jobs = home.settle();
    assert_eq!(jobs[0]["state"], "failed");
    assert!(jobs[0]["reason"].as_str().unwrap().contains("3 times"), "{jobs:#?}");
    assert!(jobs[0]["left_there"][0].as_str().unwrap().contains("m:latest"), "{jobs:#?}");
    assert_eq!(home.live(), [Value::Null; 0]);
    // As it says: another deployment takes over what is there.
    server.behave();
    home.ok(&home.deploy(&["--replace"]));
    home.assert_true(&server);
}

#[test]
fn one_that_does_the_same_is_recognised_and_its_model_is_not_deleted() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    server.rule("POST /api/create", None, Act::Hang);
    let mut child = home.start(&home.deploy(&[]));
    let job = home.wait_for("creating");
    let (code, error) = home.fails(&home.deploy(&[]));
    assert!(code == 5 && error.contains(job["id"].as_str().unwrap()), "{error}");
    let (code, error) = home.fails(&["delete", &home.model, "--yes"]);
    assert!(code == 5 && error.contains("deployment"), "{error}");
    let (code, error) = home.fails(&["env", "remove", "env"]);
    assert!(code == 5 && error.contains("deployment"), "{error}");
    home.ok(&["jobs", "cancel", job["id"].as_str().unwrap()]);
    child.wait().unwrap();
    home.ok(&["delete", &home.model, "--yes"]);
}

#[test]
fn two_for_one_name_do_not_interleave() {
    let server = StandIn::start().unwrap();
    let home = Home::new(&server.url());
    server.rule("POST /api/create", None, Act::Slow(1));
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
        "M",
    ];
    let mut children: Vec<_> =
        [home.deploy(&[]), q8.to_vec()].iter().map(|arguments| home.start(arguments)).collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let lines: Vec<_> = server.seen().into_iter().map(|seen| seen.line).collect();
    let order: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("POST /api/create") || line.starts_with("POST /api/generate"))
        .map(|line| line.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(order, ["create", "generate", "create", "generate"], "one after the other");
    assert_eq!(home.live().len(), 1, "the second has the name now");
    assert_eq!(server.models().len(), 1);
}
