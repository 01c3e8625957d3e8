//! Any text as a model's `chat_template`: a proposal that is a Deployment Template File, or why there is none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tenon_deploy::Error;
use tenon_deploy::template::suggest;

fuzz_target!(|text: &str| {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("chat_template.jinja"), text).expect("a file");
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "</s>", "bos_token": "<s>"}"#)
        .expect("a file");
    match suggest(dir.path()) {
        Ok(_) | Err(Error::NoSuggestion { .. } | Error::NoChatTemplate { .. }) => {}
        Err(other) => panic!("{other}"),
    }
});
