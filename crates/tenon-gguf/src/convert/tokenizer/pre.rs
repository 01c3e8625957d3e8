//! Recognises how a tokenizer splits text before it merges bytes.
//!
//! llama.cpp's converter hashes what a tokenizer makes of a test text and
//! knows the hashes of published models only; those come first
//! ([`super::published`]). Any other tokenizer has its patterns in
//! `tokenizer.json`, and those that llama.cpp implements are few. Several of
//! its names stand for one way of splitting; here each way has one.
//!
//! Source: `src/llama-vocab.cpp` of llama.cpp build 10488, which quotes the
//! patterns of `tokenizer.json` beside its own.

use serde_json::{Map, Value};

use crate::Error;

/// What `ByteLevel` with `use_regex` splits by.
const GPT2: &str = "byte level";
/// What `Digits` with `individual_digits` splits by.
const DIGITS: &str = "digits";
/// What `Punctuation` splits by.
const PUNCTUATION: &str = "punctuation";

/// Patterns, in the order in which they are applied, and llama.cpp's name for splitting by them.
const KNOWN: [(&[&str], &str); 14] = [
    (
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        "llama-bpe",
    ),
    (
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        "qwen2",
    ),
    (
        &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        "qwen35",
    ),
    (
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        "tekken",
    ),
    (
        &[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        "gpt-4o",
    ),
    (
        // As Phi 4 and OLMo 2 have it, from tiktoken: possessive, which changes no split.
        &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        "dbrx",
    ),
    (&[DIGITS, GPT2], "smollm"),
    (&[r"\p{N}", GPT2], "smollm"),
    (&[GPT2], "gpt-2"),
    (
        &[
            r"\p{N}{1,3}",
            "[一-龥\u{3040}-ゟ゠-ヿ]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ],
        "deepseek-v3",
    ),
    (&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGITS], "deepseek-coder"),
    (&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGITS, GPT2], "deepseek-coder"),
    (&[PUNCTUATION, GPT2, DIGITS, "[0-9][0-9][0-9]"], "falcon"),
    (&[PUNCTUATION, GPT2, "[0-9][0-9][0-9]"], "falcon"),
];

/// llama.cpp's name of the pre-tokenizer.
pub(super) fn recognise(tokenizer: &Map<String, Value>) -> Result<String, Error> {
    if let Some(name) = super::published::name(tokenizer) {
        return Ok(name.into());
    }
    let kind = |step: &str| tokenizer.get(step).and_then(|step| step.get("type")).and_then(Value::as_str);
    if (kind("model"), kind("pre_tokenizer")) == (Some("WordPiece"), Some("BertPreTokenizer")) {
        // llama.cpp splits for WordPiece in one way, whatever the name.
        return Ok("bert-bge".into());
    }
    let mut patterns = vec![];
    steps(tokenizer.get("pre_tokenizer"), &mut patterns, 0);
    let known = KNOWN.iter().find(|(known, _)| known.iter().copied().eq(patterns.iter().map(String::as_str)));
    known
        .map(|(_, name)| name.to_string())
        .ok_or_else(|| Error::PreTokenizer { pattern: patterns.join("  then  ").chars().take(500).collect() })
}

fn steps(step: Option<&Value>, patterns: &mut Vec<String>, depth: u32) {
    let Some(step) = step else { return };
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") if depth < 4 => {
            for inner in step.get("pretokenizers").and_then(Value::as_array).into_iter().flatten() {
                steps(Some(inner), patterns, depth + 1);
            }
        }
        Some("Split") => {
            let pattern = step.get("pattern");
            let text =
                pattern.and_then(|p| p.get("Regex").or_else(|| p.get("String"))).and_then(Value::as_str);
            patterns.push(text.unwrap_or("a split by nothing").to_string());
        }
        Some("ByteLevel") if step.get("use_regex").and_then(Value::as_bool) == Some(false) => {}
        Some("ByteLevel") => patterns.push(GPT2.to_string()),
        Some("Digits") if step.get("individual_digits").and_then(Value::as_bool) == Some(true) => {
            patterns.push(DIGITS.to_string());
        }
        // Digits that stay together: what follows splits them off anyway.
        Some("Digits") => {}
        Some("Punctuation") => patterns.push(PUNCTUATION.to_string()),
        Some(other) => patterns.push(format!("a step {other:?}")),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn published_tokenizers_are_recognised() {
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        let plain = json!({"type": "ByteLevel", "use_regex": false});
        let split =
            |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
        let of = |steps: Vec<Value>| {
            let tokenizer = json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}});
            recognise(tokenizer.as_object().unwrap())
        };
        assert_eq!(of(vec![byte_level.clone()]).unwrap(), "gpt-2");
        assert_eq!(of(vec![split(KNOWN[0].0[0]), plain.clone()]).unwrap(), "llama-bpe");
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(of(vec![digits, byte_level]).unwrap(), "smollm");
        let unknown = of(vec![split("x+"), plain]);
        assert!(matches!(unknown, Err(Error::PreTokenizer { pattern }) if pattern == "x+"));
    }
}
