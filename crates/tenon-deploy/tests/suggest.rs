//! A template made of a model's own `chat_template` gives the same prompts.
//!
//! The Jinja templates here are written for these tests, in the manners that models have.

#![allow(clippy::unwrap_used)] // tests

use serde_json::json;
use tenon_deploy::template::{DeploymentTemplate, Suggestion, agreement, suggest};

fn model(chat_template: &str, adds_bos: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false},
        "add_bos_token": adds_bos, "chat_template": chat_template});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let tokens = json!({"added_tokens": [{"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"},
        {"id": 7, "content": "<|end|>"}, {"id": 9, "content": "<|eot|>"}]});
    std::fs::write(dir.path().join("tokenizer.json"), tokens.to_string()).unwrap();
    std::fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [2, 9]}"#).unwrap();
    dir
}

#[track_caller]
fn suggested(chat_template: &str, adds_bos: bool) -> Suggestion {
    let suggestion = suggest(model(chat_template, adds_bos).path()).unwrap();
    assert!(suggestion.agrees(), "{}\n{:#?}", suggestion.modelfile, suggestion.agreement);
    let plain = suggestion.agreement.iter().filter(|compared| compared.plain && compared.agrees).count();
    assert!(plain >= 2, "{:#?}", suggestion.agreement);
    DeploymentTemplate::parse("t", &suggestion.modelfile).unwrap();
    suggestion
}

const TAGGED: &str = "{{ bos_token }}{% for m in messages %}\
    {{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}";

#[test]
fn every_message_in_tags() {
    let ours = suggested(TAGGED, true);
    assert!(!ours.modelfile.contains("<s>"), "the tokenizer adds it: {}", ours.modelfile);
    assert!(suggested(TAGGED, false).modelfile.contains("<s>"));
    assert!(
        ours.modelfile
            .ends_with("PARAMETER stop \"<|end|>\"\nPARAMETER stop \"</s>\"\nPARAMETER stop \"<|eot|>\"\n"),
        "{}",
        ours.modelfile
    );
    // Tools are not plain conversation.
    assert_eq!(ours.agreement.iter().filter(|compared| compared.plain).count(), 5);
}

#[test]
fn a_system_text_of_its_own_where_there_is_none() {
    suggested(
        "{% if messages[0].role != 'system' %}<|system|>\nYou are kind.<|end|>\n{% endif %}\
         {% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}\
         {% if add_generation_prompt %}<|assistant|>\n<think>\n{% endif %}",
        false,
    );
}

#[test]
fn a_system_text_in_the_first_question() {
    suggested(
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}\
         {% else %}{% set rest = messages %}{% set system = false %}{% endif %}\
         {% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}{% endif %}\
         {% if loop.index0 == 0 and system != false %}{% set content = '<<' + system + '>>\n\n' + m['content'] %}\
         {% else %}{% set content = m['content'] %}{% endif %}\
         {% if m['role'] == 'user' %}{{ bos_token + '[Q] ' + content + ' [/Q]' }}{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}\
         {% endfor %}",
        true,
    );
}

#[test]
fn a_system_text_in_the_last_question() {
    suggested(
        "{% set ns = namespace(system='') %}{% if messages[0].role == 'system' %}{% set ns.system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}\
         {{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[Q]{% if loop.last and ns.system %} {{ ns.system }}\n\n{% endif %}{{ m.content }}[/Q]\
         {% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        true,
    );
}

#[test]
fn no_system_text_at_all() {
    let refused = suggested(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<model>{% endif %}",
        false,
    );
    assert!(refused.notes[0].contains("refuses"), "{:?}", refused.notes);
    let left_out = suggested(
        "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
        false,
    );
    assert!(left_out.notes[0].contains("leaves"), "{:?}", left_out.notes);
}

#[test]
fn braces_quotes_and_odd_characters_are_kept() {
    let odd = suggested(
        "{% for m in messages %}{{ '{{' + m.role + '}} \"\"\" \u{a0}\t{' + m.content + '{' }}{% endfor %}{% if add_generation_prompt %}{{ '{{assistant}} \"\"\" \u{a0}\t{' }}{% endif %}",
        false,
    );
    assert!(odd.modelfile.contains(r"\u00a0"), "{}", odd.modelfile);
}

#[test]
fn what_is_not_understood_is_said() {
    for (template, reason) in [
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "does not come out in its place, or changed",
        ),
        ("{{ messages[-1].content }}", "does not come out in its place, or changed"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "changed"),
        ("{% if %}", "syntax error"),
        ("{{ raise_exception('never') }}", "never"),
        ("{% for i in range(90000) %}{% for i in range(90000) %}{% endfor %}{% endfor %}", "fuel"),
    ] {
        let error = suggest(model(template, false).path()).unwrap_err().to_string();
        assert!(error.contains(reason) || error.contains("twice"), "{error}");
    }
    let none = tempfile::tempdir().unwrap();
    assert!(suggest(none.path()).unwrap_err().to_string().ends_with("the model has no chat_template"));
}

#[test]
fn a_template_of_ones_own_is_compared() {
    let dir = model(TAGGED, true);
    let ours = "{{ range .Messages }}<|{{ .Role }}|>\n{{ .Content }}<|end|>\n{{ end }}<|assistant|>\n";
    let compare =
        |text: &str| agreement(dir.path(), &DeploymentTemplate::parse("t", text).unwrap()).unwrap().unwrap();
    assert!(compare(ours).iter().all(|compared| compared.agrees || !compared.plain));
    let other = compare(&ours.replace("<|end|>", "<|fin|>"));
    assert!(other.iter().all(|compared| !compared.agrees));
    assert!(other[0].template.as_ref().unwrap().contains("<|fin|>"));
    let renderer = DeploymentTemplate::parse("t", "RENDERER qwen3.5").unwrap();
    assert!(agreement(dir.path(), &renderer).unwrap().is_none());
}

/// `TENON_TEST_CHAT_TEMPLATES=DIR` of chat templates in files, such as llama.cpp's `models/templates`: tells
/// which yield a proposal that agrees. For people, who read it with `--nocapture`.
#[test]
fn chat_templates_of_a_directory() {
    let Some(dir) = std::env::var_os("TENON_TEST_CHAT_TEMPLATES") else { return };
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "jinja"));
    files.sort();
    let (mut agree, all) = (0, files.len());
    for file in files {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let model = model("", false);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(model.path().join("chat_template.jinja"), text).unwrap();
        match suggest(model.path()) {
            Ok(suggestion) if suggestion.agrees() => agree += 1,
            Ok(suggestion) => {
                let differs = suggestion.agreement.iter().find(|compared| compared.plain && !compared.agrees);
                println!("{name}: {differs:#?}\n{}", suggestion.modelfile);
            }
            Err(error) => println!("{name}: {error}"),
        }
    }
    println!("{agree} of {all} agree");
}
