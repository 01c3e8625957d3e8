//! A quantized deployment in each of its states: killed, cancelled. Nothing half-made stays, here or
//! there, without being told, and there is no Live Model but of what is live.

use tenon_standin::Act;

use super::crashes::STATES;
use super::*;

/// A deployment held in a state, until it is let go.
struct Held {
    home: Home,
    server: StandIn,
    child: Child,
    /// The one that has the name before it, in `queued`.
    ahead: Option<Child>,
    job: Value,
}

impl Held {
    /// Deploys `q4_K_M`, and waits until that is in a state.
    fn new(state: &str) -> Self {
        let server = StandIn::start().unwrap();
        let home = Home::new(&server.url());
        let mut ahead = None;
        let name = "held";
        let arguments = ["deploy", &home.model, "--env", "env", "--quantization", "q4_K_M", "--as", name];
        let mut command = home.command(&arguments);
        match state {
            "queued" => {
                server.rule("POST /api/create", Some(1), Act::Hang);
                let first = [
                    "deploy",
                    &home.model,
                    "--env",
                    "env",
                    "--quantization",
                    "no_quantization",
                    "--as",
                    name,
                ];
                ahead = Some(home.start(&first));
                home.wait_for("creating");
            }
            "quantizing" => drop(command.env("TENON_FAULT", "slow:write tile")),
            other => {
                let (request, _) = STATES.iter().find(|(_, state)| *state == other).unwrap();
                server.rule(request, None, Act::Hang);
            }
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let job = home.wait_for(state);
        Self { home, server, child, ahead, job }
    }

    fn id(&self) -> &str {
        self.job["id"].as_str().unwrap()
    }

    fn artifacts(&self) -> Vec<String> {
        let dirs = std::fs::read_dir(self.home.path("artifacts")).unwrap();
        let files = dirs.flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap());
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Ends the one before it, so that nothing of it is left.
    fn end_ahead(&mut self) {
        if let Some(mut ahead) = self.ahead.take() {
            let jobs = self.home.deployments();
            let first = jobs.iter().find(|job| job["id"] != self.id() && job["state"] == "creating").unwrap();
            self.home.ok(&["jobs", "cancel", first["id"].as_str().unwrap()]);
            ahead.wait().unwrap();
        }
    }

    fn this(&self) -> Value {
        self.home.deployments().into_iter().find(|job| job["id"] == self.id()).unwrap()
    }

    /// What must hold in the end: no half-made file here, and the artifact that is there is whole.
    fn assert_true(&self) {
        self.home.assert_true(&self.server);
        let names = self.artifacts();
        let ends = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
        assert_eq!(ends(".gguf"), ends(".json"), "{names:?}");
        assert_eq!(ends(".gguf") + ends(".json"), names.len(), "{names:?}");
    }
}

/// Killed, it is taken up by another process and goes live, with one upload of the file.
fn killed(state: &str) {
    let mut held = Held::new(state);
    held.child.kill().unwrap();
    held.child.wait().unwrap();
    let live: Vec<_> = held.home.live();
    assert_eq!(live, [Value::Null; 0], "{state}");
    held.end_ahead();
    held.server.behave();
    held.home.ok(&["jobs"]);
    held.home.settle();
    let job = held.this();
    let attempts = if state == "queued" { 1 } else { 2 };
    assert_eq!((&job["state"], &job["attempts"]), (&"live".into(), &attempts.into()), "{job:#}");
    assert_eq!(held.home.live().len(), 1);
    if ["creating", "verifying"].contains(&state) {
        assert_eq!(held.server.uploaded_bytes(), held.server.models()[0].size, "sent once");
    }
    held.assert_true();
}

/// Killed, and cancelled before another process took it up: it ends at once, and what it left here goes.
fn killed_and_cancelled(state: &str) {
    let mut held = Held::new(state);
    held.child.kill().unwrap();
    held.child.wait().unwrap();
    let before = held.server.uploaded_bytes();
    held.home.ok(&["jobs", "cancel", held.id()]);
    held.end_ahead();
    held.server.behave();
    // Whoever comes next sweeps.
    held.home.ok(&["list"]);
    let job = held.home.settle().into_iter().find(|job| job["id"] == held.id()).unwrap();
    assert_eq!(job["state"], "cancelled", "{job:#}");
    assert_eq!(held.home.live(), [Value::Null; 0]);
    // Where nobody asked the server, what may be there is told, and what is not there is not. Where the lock
    // of the killed process was seen for a moment longer, the next one took it up to end it, and cleared away.
    let told = job["left_there"].to_string();
    let was_asked = state != "queued" && job["attempts"] == 2;
    assert_eq!(
        told.contains("perhaps the model held"),
        ["creating", "verifying"].contains(&state) && !was_asked,
        "{job:#}"
    );
    if held.server.models().is_empty() {
        held.assert_true();
    } else {
        assert_eq!((state, before), ("verifying", held.server.models()[0].size));
    }
    // The same again takes over what is there.
    let again = ["--quantization", "q4_K_M", "--as", "held", "--replace"];
    held.home.ok(&[&["deploy", &held.home.model, "--env", "env"][..], &again].concat());
    held.assert_true();
}

/// Cancelled, by another process or by Ctrl-C: no Live Model, no model there, nothing half-made here.
fn cancelled(state: &str) {
    for by_signal in [false, true] {
        let mut held = Held::new(state);
        if by_signal {
            let pid = rustix::process::Pid::from_child(&held.child);
            rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        } else {
            held.home.ok(&["jobs", "cancel", held.id()]);
        }
        assert_eq!(held.child.wait().unwrap().code(), Some(130), "{state} {by_signal}");
        let job = held.this();
        assert_eq!(job["state"], "cancelled", "{job:#}");
        let told = job["left_there"].as_array().cloned().unwrap_or_default();
        assert_eq!(!told.is_empty(), job["sent_bytes"] != 0, "{job:#}");
        held.end_ahead();
        held.assert_true();
    }
}

macro_rules! states {
    ($($state:ident)*) => {
        $(mod $state {
            #[test]
            fn killed() {
                super::killed(stringify!($state));
            }
            #[test]
            fn killed_and_cancelled() {
                super::killed_and_cancelled(stringify!($state));
            }
            #[test]
            fn cancelled() {
                super::cancelled(stringify!($state));
            }
        })*
    };
}

states!(queued checking quantizing uploading creating verifying);
