//! Processes that save, list and delete at once on one home.

use std::collections::BTreeSet;

use super::*;

fn at_once(processes: usize) {
    let home = Home::new();
    let deleted: Vec<(String, Option<String>)> = std::thread::scope(|scope| {
        let users: Vec<_> = (0..processes)
            .map(|user| {
                let home = &home;
                scope.spawn(move || {
                    // All register the same two directories at once.
                    let kept = home.save();
                    home.models();
                    let adapter = "fixtures/kjv-llama/adapter-dora";
                    let second = home.json(&["save", adapter, "--base", BASE, "--json"]);
                    let second = second["saving"]["name"].as_str().unwrap().to_string();
                    assert!(home.models().contains(&second));
                    if user % 2 == 0 {
                        home.ok(&["delete", &second, "--yes"]);
                        assert!(!home.models().contains(&second));
                        (kept, None)
                    } else {
                        home.ok(&["verify", &second]);
                        (kept, Some(second))
                    }
                })
            })
            .collect();
        users.into_iter().map(|user| user.join().unwrap()).collect()
    });
    let expected: BTreeSet<String> =
        deleted.into_iter().flat_map(|(kept, second)| [Some(kept), second]).flatten().collect();
    let models = home.models();
    assert_eq!(models.len(), expected.len(), "no duplicates");
    assert_eq!(models.into_iter().collect::<BTreeSet<_>>(), expected);
    let bases = home.json(&["base", "list", "--json"]);
    assert_eq!(bases.as_array().unwrap().len(), 1, "one directory, one Base Model");
    let jobs = home.settle();
    assert_eq!(jobs.len(), 2 * processes);
    assert!(jobs.iter().all(|job| job["state"] == "done"));
    home.assert_true();
}

#[test]
fn two_at_once() {
    at_once(2);
}

#[test]
fn sixteen_at_once() {
    at_once(16);
}

#[test]
fn two_deletes_of_one_model_are_one() {
    let home = Home::new();
    for _ in 0..5 {
        let name = home.save();
        let codes: Vec<_> = std::thread::scope(|scope| {
            let users: Vec<_> =
                (0..4).map(|_| scope.spawn(|| home.run(&["delete", &name, "--yes"]).status.code())).collect();
            users.into_iter().map(|user| user.join().unwrap()).collect()
        });
        assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
        assert!(codes.iter().all(|code| matches!(code, Some(0 | 3 | 5))), "{codes:?}");
        home.assert_true();
    }
}
