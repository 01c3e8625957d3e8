//! `tenon base template`.

use std::fs;
use std::io::Write;

use crate::{BASE, Home};

const MODELFILE: &str =
    "TEMPLATE \"{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}assistant: \"\n";

#[test]
fn attach_show_check_remove() {
    let home = Home::new();
    home.ok(&["base", "add", BASE, "--name", "kjv"]);
    let file = home.dir.path().join("kjv.modelfile");
    fs::write(&file, "TEMPLATE \"\"\"{{ .Promt }}\"\"\"\nPARAMETER top_k x\n").unwrap();
    let refused = home.run(&["base", "template", "kjv", "--set", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(3));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("kjv.modelfile:1:16: Ollama gives templates no variable .Promt"), "{said}");
    assert!(said.contains("kjv.modelfile:2:17: top_k takes an integer"), "{said}");
    assert_eq!(home.run(&["base", "template", "kjv", "--show"]).status.code(), Some(3));

    fs::write(&file, MODELFILE).unwrap();
    home.ok(&["base", "template", "kjv", file.to_str().unwrap()]);
    assert_eq!(home.ok(&["base", "template", "kjv", "--show"]), MODELFILE);
    let checked = home.ok(&["base", "template", "kjv", "--check"]);
    assert!(checked.contains("one question") && !checked.contains("DIFFERENT"), "{checked}");

    // Another one than the model's own is right, and told.
    fs::write(&file, MODELFILE.replace("assistant", "bot")).unwrap();
    home.ok(&["base", "template", "kjv", "--set", file.to_str().unwrap()]);
    let differs = home.run(&["base", "template", "kjv", "--check"]);
    assert_eq!(differs.status.code(), Some(6));
    assert!(String::from_utf8(differs.stdout).unwrap().contains("DIFFERENT"));

    home.ok(&["base", "template", "kjv", "--remove"]);
    assert_eq!(home.run(&["base", "template", "kjv", "--check"]).status.code(), Some(3));
    assert_eq!(home.run(&["base", "template", "kjv"]).status.code(), Some(2));
}

/// Runs a command whose standard input is a terminal, on which somebody types an answer: its exit code,
/// and what it says besides its output.
fn on_a_terminal(home: &Home, arguments: &[&str], answer: &str) -> (Option<i32>, String) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, vec![]).unwrap();
    let terminal = fs::OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    // Typed ahead: it waits in the terminal until it is read.
    fs::File::from(master.try_clone().unwrap()).write_all(answer.as_bytes()).unwrap();
    let mut command = home.command(arguments);
    let output = command.stdin(terminal).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_proposal_is_attached_where_somebody_says_yes_on_a_terminal() {
    let home = Home::new();
    home.ok(&["base", "add", BASE, "--name", "kjv"]);
    let suggest = ["base", "template", "kjv", "--suggest"];
    for answer in ["n\n", "\n", "nay\n", "yess\n", "\u{4}"] {
        let (code, asked) = on_a_terminal(&home, &suggest, answer);
        assert!(code == Some(0) && asked.contains("Attach it to kjv? [y/N]"), "{answer:?}: {asked}");
        assert_eq!(home.run(&["base", "template", "kjv", "--show"]).status.code(), Some(3), "{answer:?}");
    }
    for answer in ["y\n", "YES\n"] {
        let (code, _) = on_a_terminal(&home, &suggest, answer);
        assert_eq!(code, Some(0));
        assert!(home.ok(&["base", "template", "kjv", "--show"]).contains("PARAMETER stop"));
        home.ok(&["base", "template", "kjv", "--remove"]);
    }
}

#[test]
fn a_proposal_is_attached_only_when_somebody_says_so() {
    let home = Home::new();
    home.ok(&["base", "add", BASE, "--name", "kjv"]);
    let proposed = home.ok(&["base", "template", "kjv", "--suggest"]);
    assert!(proposed.contains("PARAMETER stop \"</s>\""), "{proposed}");
    assert_eq!(home.run(&["base", "template", "kjv", "--show"]).status.code(), Some(3));
    home.ok(&["base", "template", "kjv", "--suggest", "--yes"]);
    let shown = home.ok(&["base", "template", "kjv", "--show"]);
    assert!(proposed.contains(&shown), "{shown}");
    let checked = home.json(&["base", "template", "kjv", "--check", "--json"]);
    assert_eq!(checked["agrees"], true);
    assert_eq!(checked["agreement"][0]["model"]["Ok"], "user: Who built the ark?\nassistant: ");
}
