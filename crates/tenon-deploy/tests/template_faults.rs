//! What is wrong with a template is said with its place, and what to do.

#![allow(clippy::unwrap_used)] // tests

use tenon_deploy::Error;
use tenon_deploy::template::DeploymentTemplate;

fn faults(text: &str) -> String {
    match DeploymentTemplate::parse("t", text) {
        Ok(read) => panic!("taken: {text:?}, warnings {:?}", read.warnings),
        Err(error @ Error::Template { .. }) => error.to_string(),
        #[allow(unreachable_patterns)] // the crate's error will have other variants
        Err(other) => panic!("{other}"),
    }
}

#[track_caller]
fn fault(text: &str, expected: &str) {
    assert_eq!(faults(text), expected);
}

#[test]
fn syntax() {
    fault("Hi\n  {{ .Prompt ", "t:2:3: the action is not closed: }} is missing");
    fault("é{{ if .Prompt }}\nx", "t:1:2: {{if}} is not closed: {{end}} is missing");
    fault("{{ .Prompt }}\n{{ end }}", "t:2:1: an {{end}} that closes nothing");
    fault("{{ .Prompt }}{{ jsn .Tools }}", "t:1:17: there is no function jsn (did you mean json?)");
    fault("{{ .Prompt }}{{ range $x }}{{ end }}", "t:1:23: the variable $x is not declared here");
    fault(r#"{{ .Prompt }}{{ "a\q" }}"#, r"t:1:17: \q is no escape of Go");
    fault(
        "{{ .Prompt }}{{ template \"x\" }}{{ define \"x\" }}{{ end }}",
        "t:1:14: Ollama takes {{template \"x\"}} with a value only: add a dot",
    );
}

#[test]
fn variables_and_fields_that_there_are_not() {
    fault(
        "{{ .Promt }}{{ .Prompt }}",
        "t:1:4: Ollama gives templates no variable .Promt (did you mean Prompt?)",
    );
    fault("{{ range .Messages }}{{ .Text }}{{ end }}", "t:1:25: a message has no .Text");
    fault(
        "{{ range .Messages }}{{ .System }}{{ .Content }}{{ end }}",
        "t:1:25: a message has no .System; the variable is $.System",
    );
    fault("{{ range .Messages }}{{ .Content.X }}{{ end }}", "t:1:25: a string has no .X");
    fault(
        "{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Contents }}{{ end }}",
        "t:1:43: a message has no .Contents (did you mean Content?)",
    );
    fault(
        "{{ define \"m\" }}{{ .Rol }}{{ end }}{{ range .Messages }}{{ template \"m\" . }}{{ .Content }}{{ end }}",
        "t:1:20: a message has no .Rol (did you mean Role?)",
    );
    fault("{{ template \"m\" . }}{{ .Prompt }}", "t:1:1: there is no template \"m\"");
    // Everything at once, in the order of the text.
    assert_eq!(faults("{{ .A1 }}{{ .B1 }}{{ .Prompt }}").lines().count(), 2);
}

#[test]
fn required_parts() {
    fault(
        "You are {{ .System }}",
        "t:1:1: neither .Messages nor .Prompt is used anywhere: what people say would not reach the model",
    );
    fault(
        "{{ if false }}{{ .Prompt }}{{ end }}",
        "t:1:1: what the user says does not reach the model (for one question)",
    );
    fault(
        "SYSTEM hi\nPARAMETER top_k 1\n",
        "t:1:1: neither TEMPLATE nor RENDERER is there; Ollama needs one of them to talk with the model",
    );
    assert!(DeploymentTemplate::parse("t", "RENDERER qwen3.5\nPARSER qwen3.5\n").is_ok());
    let read = DeploymentTemplate::parse("t", "{{ .Prompt }}").unwrap();
    assert_eq!(
        read.warnings[0].reason,
        "the system's text does not reach the model (for a system's text and a question)"
    );
}

#[test]
fn what_fails_only_when_it_runs() {
    fault(
        "{{ index .Messages 1 }}{{ range .Messages }}{{ .Content }}{{ end }}",
        "t:1:4: index: the index 1 is out of range (for one question)",
    );
    let cut = faults("{{ if .Prompt }}{{ .Prompt }}{{ .Response }}{{ else }}x{{ end }}");
    assert!(cut.starts_with("t:1:1: Ollama breaks down on a template whose .Response"), "{cut}");
    assert!(faults("{{ range 3000000 }}{{ end }}{{ .Prompt }}").contains("more than 2000000 steps"));
    let calls = "{{ define \"r\" }}{{ template \"r\" . }}{{ end }}{{ template \"r\" . }}{{ range .Messages }}{{ end }}";
    assert!(faults(calls).contains("deep"));
    assert!(faults(&format!("{}{{{{ .Prompt }}}}", "{{ if true }}".repeat(200))).contains("in each other"));
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(faults(&parens).contains("in each other"));
}

#[test]
fn modelfiles() {
    let template = "TEMPLATE \"\"\"{{ .System }}\n{{ .Promt }}{{ .Prompt }}\"\"\"\n";
    fault(template, "t:2:4: Ollama gives templates no variable .Promt (did you mean Prompt?)");
    fault(
        "FROM ./model\nTEMPLATE {{ .Prompt }}\nADAPTER ./a\n",
        "t:1:1: FROM has no place here: the model is the Complete Model that is deployed; remove this line\n\
         t:3:1: ADAPTER has no place here: in a Complete Model the adapter is merged already, and would be applied twice; remove this line",
    );
    fault(
        "TEMPLATE {{ .Prompt }}\nPARAMETER top_k many\nPARAMETER temprature 1\n",
        "t:2:17: top_k takes an integer, not \"many\"\n\
         t:3:22: Ollama has no parameter temprature (did you mean temperature?)",
    );
    let text = "TEMPLATE {{ .Prompt }}\nMESSAGE user hi\nSYSTEM a\u{a0}b\nRENDERER qwen4\n";
    let read = DeploymentTemplate::parse("t", text).unwrap();
    let lines: Vec<_> = read.warnings.iter().map(|fault| fault.line).collect();
    assert!(lines.contains(&3) && lines.contains(&4), "{:?}", read.warnings);
    assert_eq!(read.system.as_deref(), Some("ab"));
}

#[test]
fn a_template_that_looks_like_a_modelfile_is_one() {
    // By its first word and another command, not by words that people write.
    for (text, template) in [
        ("# mine\n\ntemplate {{ .Prompt }}", "{{ .Prompt }}"),
        ("SYSTEM be kind\nTEMPLATE {{ .Prompt }}", "{{ .Prompt }}"),
        ("System {{ .System }}\nUser {{ .Prompt }}\n", "System {{ .System }}\nUser {{ .Prompt }}\n"),
        ("From the user: {{ .Prompt }}", "From the user: {{ .Prompt }}"),
    ] {
        let read = DeploymentTemplate::parse("t", text).unwrap();
        assert_eq!(read.template.unwrap().text(), template);
    }
}
