//! The disk is full from any step of a save on.

use super::*;

#[test]
fn a_save_that_runs_out_of_disk_anywhere_says_so_and_leaves_nothing() {
    let save = ["save", ADAPTER, "--base", BASE];
    let counted = Home::new();
    let count = counted.dir.path().join("count");
    let output =
        counted.command(&save).env("TENON_FAULT", format!("count:{}", count.display())).output().unwrap();
    assert!(output.status.success());
    let n: usize = std::fs::read_to_string(count).unwrap().parse().unwrap();
    assert!(n > 40, "{n} steps");
    let mut failed = 0;
    for step in 1..=n {
        let home = Home::new();
        let output = home.command(&save).env("TENON_FAULT", format!("full:{step}")).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            // The journal and the sweeping need not succeed.
            assert_eq!(home.models().len(), 1, "step {step}");
        } else {
            failed += 1;
            assert_eq!(output.status.code(), Some(4), "step {step}: {err}");
            assert!(err.contains("error: "), "{err}");
            assert_eq!(home.models(), [""; 0], "step {step}");
            assert_eq!(home.entries("staging"), [""; 0], "step {step}: staging is gone");
            for job in home.settle() {
                assert_eq!(job["state"], "failed", "step {step}");
            }
        }
        home.assert_true();
        // And with room again it works.
        home.save();
        home.assert_true();
    }
    assert!(failed > n * 3 / 4, "{failed} of {n}");
}

#[test]
fn a_delete_needs_no_room() {
    let home = Home::new();
    let name = home.save();
    let output = home.command(&["delete", &name, "--yes"]).env("TENON_FAULT", "full:1").output().unwrap();
    // SQLite cannot commit on a full disk: then nothing happened.
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(home.models(), [name]);
    home.assert_true();
}
