//! `kill -9` at every step that a save and a delete take, and at moments between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;

/// Small shards, so that a save has many steps and something to resume from.
const SHARD: &str = "60000";

fn steps(home: &Home, arguments: &[&str]) -> usize {
    let count = home.dir.path().join("count");
    let output = home
        .command(arguments)
        .env("TENON_MAX_SHARD_SIZE", SHARD)
        .env("TENON_FAULT", format!("count:{}", count.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(count).unwrap().parse().unwrap()
}

/// Runs a command that is killed at a step; whether it was.
fn killed_at(home: &Home, arguments: &[&str], step: usize) -> bool {
    let output = home
        .command(arguments)
        .env("TENON_MAX_SHARD_SIZE", SHARD)
        .env("TENON_FAULT", format!("kill:{step}"))
        .output()
        .unwrap();
    std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9)
}

/// Runs the closure for 1..=n on two threads.
fn sweep(n: usize, run: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at > n {
                        return;
                    }
                    run(at);
                }
            });
        }
    });
}

#[test]
fn a_save_killed_at_any_step_is_resumed_or_leaves_nothing() {
    let save = ["save", ADAPTER, "--base", BASE];
    let n = steps(&Home::new(), &save);
    assert!(n > 120, "{n} steps");
    let resumed = AtomicUsize::new(0);
    sweep(n, |step| {
        let home = Home::new();
        // On a slow machine the heartbeat makes some steps more or less.
        if !killed_at(&home, &save, step) {
            assert!(step + 4 > n, "step {step} of {n}");
            return;
        }
        // Listing alone finishes or requeues, and lists no model that is not whole.
        let listed = home.models();
        for model in &listed {
            home.ok(&["verify", model]);
        }
        let jobs = home.settle();
        assert!(jobs.len() <= 1);
        for job in &jobs {
            assert_eq!(job["state"], "done", "step {step}: {job:#}");
            assert!(job["attempts"].as_u64().unwrap() <= 2);
        }
        assert_eq!(home.models().len(), jobs.len(), "step {step}");
        resumed.fetch_add(jobs.len(), Ordering::Relaxed);
        home.assert_true();
    });
    // Before the job is queued there are but a few steps.
    assert!(resumed.load(Ordering::Relaxed) > n * 3 / 4);
}

#[test]
fn a_delete_killed_at_any_step_is_through_or_did_not_happen() {
    let counted = Home::new();
    let name = counted.save();
    let n = steps(&counted, &["delete", &name, "--yes"]);
    assert!(n > 10, "{n} steps");
    sweep(n, |step| {
        let home = Home::new();
        let (kept, name) = (home.save(), home.save());
        assert!(killed_at(&home, &["delete", &name, "--yes"], step), "step {step} of {n}");
        let left = home.models();
        assert!(left == [kept.clone()] || left == [kept.clone(), name.clone()], "step {step}: {left:?}");
        home.assert_true();
        if left.len() == 2 {
            home.ok(&["delete", &name, "--yes"]);
            home.assert_true();
        }
    });
}

#[test]
fn a_recovery_killed_at_any_step_is_done_by_the_next() {
    let save = ["save", ADAPTER, "--base", BASE];
    let n = steps(&Home::new(), &save);
    for step in [n / 4, n / 2, n - 3, n - 2, n - 1, n] {
        let home = Home::new();
        // On a slow machine the heartbeat makes some steps more or less.
        if !killed_at(&home, &save, step) && step < n - 3 {
            panic!("step {step} of {n}");
        }
        // Each kill one step later than the one before, until nothing is left to recover.
        for second in 1.. {
            if !killed_at(&home, &["list"], second) {
                break;
            }
        }
        let jobs = home.settle();
        assert!(jobs.iter().all(|job| job["state"] == "done"), "{jobs:#?}");
        home.assert_true();
    }
}

#[test]
fn a_save_killed_at_any_moment_is_resumed_or_leaves_nothing() {
    let save = ["save", ADAPTER, "--base", BASE];
    let warm = Home::new();
    let start = Instant::now();
    warm.save();
    let whole = start.elapsed();
    sweep(120, |moment| {
        let home = Home::new();
        let mut child = home
            .command(&save)
            .env("TENON_MAX_SHARD_SIZE", SHARD)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(moment as f64 / 80.0).max(Duration::from_millis(1)));
        child.kill().unwrap();
        child.wait().unwrap();
        let jobs = home.settle();
        assert!(jobs.iter().all(|job| job["state"] == "done"), "moment {moment}: {jobs:#?}");
        assert_eq!(home.models().len(), jobs.len());
        home.assert_true();
    });
}

#[test]
fn a_saving_goes_on_from_its_finished_shards() {
    let home = Home::new();
    let save = ["save", ADAPTER, "--base", BASE];
    let n = steps(&Home::new(), &save);
    assert!(killed_at(&home, &save, n * 3 / 4));
    let staging = home.path("staging").join(&home.entries("staging")[0]);
    let journal = std::fs::read_to_string(staging.join("journal")).unwrap();
    let finished = journal.lines().count() - 1;
    assert!(finished > 2, "{journal}");
    // One finished shard is damaged meanwhile: those before it are kept, it is written again.
    let shards: Vec<_> =
        std::fs::read_dir(staging.join("model")).unwrap().map(|e| e.unwrap().path()).collect();
    let mut shards: Vec<_> =
        shards.iter().filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    shards.sort();
    let before: Vec<_> = shards
        .iter()
        .map(|path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap()))
        .collect();
    let mut bytes = std::fs::read(shards[1]).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(shards[1], bytes).unwrap();
    let output = home.run(&["list"]);
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.contains("was interrupted; it is queued again"), "{note}");
    let output = home.command(&["jobs"]).env("TENON_MAX_SHARD_SIZE", SHARD).output().unwrap();
    assert!(output.status.success());
    let jobs = home.settle();
    assert_eq!((&jobs[0]["state"], jobs[0]["attempts"].as_u64()), (&Value::from("done"), Some(2)));
    let model = home.path("complete").join(&home.models()[0]);
    let ino = |name: &std::ffi::OsStr| {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(model.join(name)).unwrap())
    };
    assert_eq!(ino(shards[0].file_name().unwrap()), before[0], "the first shard was kept");
    home.assert_true();
    // The same weights as without the interruption, and measures of the kept shard too.
    let whole = Home::new();
    let output = whole.command(&save).env("TENON_MAX_SHARD_SIZE", SHARD).output().unwrap();
    assert!(output.status.success());
    let card = |home: &Home| home.json(&["card", &home.models()[0], "--format", "json"])["measured"].clone();
    assert_eq!(card(&home), card(&whole));
    for entry in std::fs::read_dir(whole.path("complete").join(&whole.models()[0])).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let other = std::fs::read(model.join(path.file_name().unwrap())).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), other, "{}", path.display());
        }
    }
}

#[test]
fn a_saving_whose_process_dies_each_time_is_given_up() {
    let home = Home::new();
    let save = ["save", ADAPTER, "--base", BASE];
    let n = steps(&Home::new(), &save);
    assert!(killed_at(&home, &save, n / 2));
    for _ in 0..2 {
        home.run(&["list"]);
        // The worker finds the journal short of its plan and dies at its own 40th step.
        assert!(killed_at(&home, &["work"], 15));
    }
    let output = home.run(&["list"]);
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.contains("ended unexpectedly 3 times"), "{note}");
    let jobs = home.settle();
    assert_eq!(jobs[0]["state"], "failed");
    home.assert_true();
}
