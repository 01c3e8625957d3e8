//! Whatever a Deployment Template File or a model's `chat_template` says, it is read or refused, and never
//! breaks what reads it. `fuzz/` asks the same of any bytes.
#![allow(clippy::unwrap_used)] // tests

use proptest::prelude::*;
use tenon_deploy::Error;
use tenon_deploy::template::{DeploymentTemplate, suggest};

/// Texts made of what such files are made of, in any order.
fn pieces(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        20 => prop::sample::select(pieces).prop_map(str::to_string),
        1 => any::<char>().prop_map(String::from),
        1 => "[0-9a-zA-Z_.]{1,4}",
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

const GO: &[&str] = &[
    "{{",
    "}}",
    "{{-",
    "-}}",
    "{{ ",
    " }}",
    "{{/*",
    "*/}}",
    "range ",
    "end",
    "if ",
    "else ",
    "else if ",
    "with ",
    "define ",
    "template ",
    "block ",
    "break",
    "continue",
    "\"a\"",
    "`b`",
    "'c'",
    "\"",
    "'",
    "`",
    "\\",
    "\\u00",
    "$x",
    "$",
    ":=",
    "=",
    "|",
    ",",
    " ",
    "\n",
    "(",
    ")",
    ".",
    ".Messages",
    ".Role",
    ".Content",
    ".System",
    ".Prompt",
    ".Response",
    ".Tools",
    ".ToolCalls",
    ".Function",
    "index ",
    "slice ",
    "len ",
    "printf ",
    "json ",
    "and ",
    "or ",
    "not ",
    "eq ",
    "lt ",
    "call ",
    "html ",
    "urlquery ",
    "0x1p",
    "1e400",
    "-9223372036854775809",
    "1_0",
    "nil",
    "true",
    "\"%[3]*.*d%!\"",
    "currentDate ",
    "toTypeScriptType ",
];

const MODELFILE: &[&str] = &[
    "FROM ",
    "TEMPLATE ",
    "SYSTEM ",
    "PARAMETER ",
    "LICENSE ",
    "MESSAGE ",
    "ADAPTER ",
    "RENDERER ",
    "PARSER ",
    "REQUIRES ",
    "DRAFT ",
    "# ",
    "\n",
    "\r\n",
    "\"\"\"",
    "\"",
    " ",
    "stop ",
    "temperature ",
    "num_ctx ",
    "1",
    "-1",
    "1e999",
    "0.5",
    "user ",
    "assistant ",
    "system ",
    "qwen3.5",
    "{{ .Prompt }}",
    "{{ range .Messages }}",
    "{{ .Content }}{{ end }}",
    "\u{a0}",
    "\0",
    "true",
];

const JINJA: &[&str] = &[
    "{%",
    "%}",
    "{{",
    "}}",
    "{%-",
    "-%}",
    "{#",
    "#}",
    " for m in messages ",
    " endfor ",
    " if ",
    " endif ",
    " else ",
    " elif ",
    " set x = ",
    " set ns = namespace(a=1) ",
    " macro f(a) ",
    " endmacro ",
    "m.role",
    "m['content']",
    "message",
    "messages",
    "messages[0]",
    "messages[1:]",
    "messages[::-1]",
    "bos_token",
    "eos_token",
    "tools",
    "add_generation_prompt",
    "loop.index0",
    "loop.last",
    " + ",
    " ~ ",
    " == ",
    " != ",
    " and ",
    " not ",
    " in ",
    " is defined",
    " is mapping",
    "| trim",
    "| tojson",
    "| length",
    "raise_exception('x')",
    "strftime_now('%Y')",
    "range(99999999)",
    "'user'",
    "'assistant'",
    "'system'",
    "'<|'",
    "'\\n'",
    "1",
    "-1",
    ".split('a')",
    ".strip()",
    " generation ",
    " endgeneration ",
    "\"\"\"",
    "\n",
    " ",
];

/// What a file says, or its faults, each with a place in it.
fn read(text: &str) {
    match DeploymentTemplate::parse("file", text) {
        Ok(template) => {
            let settings = template.settings();
            assert!(settings.template.is_some() || settings.renderer.is_some(), "{text:?}");
        }
        Err(Error::Template { faults, .. }) => {
            let lines = text.split('\n').count();
            assert!(faults.iter().count() > 0, "{text:?}");
            assert!(faults.iter().all(|fault| fault.line <= lines + 1), "{text:?}: {faults:?}");
        }
        Err(other) => panic!("{text:?}: {other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn go_templates(text in pieces(GO)) {
        read(&text);
        // Something that is valid up to there.
        read(&format!("{{{{ range .Messages }}}}{{{{ .Content }}}}{{{{ end }}}}{text}"));
    }

    #[test]
    fn modelfiles(text in pieces(MODELFILE)) {
        read(&text);
        read(&format!("TEMPLATE {{{{ .Prompt }}}}\n{text}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn chat_templates(text in pieces(JINJA)) {
        let dir = tempfile::tempdir().unwrap();
        let valid = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
        for text in [text.clone(), format!("{valid}{text}"), format!("{text}{valid}")] {
            std::fs::write(dir.path().join("chat_template.jinja"), &text).unwrap();
            match suggest(dir.path()) {
                Ok(_) | Err(Error::NoSuggestion { .. } | Error::NoChatTemplate { .. }) => {}
                Err(other) => panic!("{text:?}: {other}"),
            }
        }
    }
}
