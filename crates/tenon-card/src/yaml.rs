//! YAML: the front matter of cards, read from strangers and written for the Hub.

use serde_json::Value;

/// No YAML that is parsed may be longer.
pub const MAX_YAML_BYTES: usize = 1 << 20;

/// Why a text is no YAML that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct YamlError(pub String);

impl std::fmt::Display for YamlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for YamlError {}

/// Parses YAML from a stranger: bounded in size, in depth and in what its aliases unfold to.
pub fn parse_yaml(text: &str) -> Result<Value, YamlError> {
    if text.len() > MAX_YAML_BYTES {
        return Err(YamlError(format!("{} bytes are too many", text.len())));
    }
    serde_saphyr::from_str(text).map_err(|e| YamlError(e.to_string()))
}

/// Splits a card into its front matter and what follows. A card without front matter has `Null`.
pub fn front_matter(card: &str) -> Result<(Value, &str), YamlError> {
    let card = card.trim_start_matches('\u{feff}');
    let begins = ["---\n", "---\r\n"].into_iter().find_map(|fence| card.strip_prefix(fence));
    let Some(rest) = begins else { return Ok((Value::Null, card)) };
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Ok((parse_yaml(&rest[..at])?, &rest[at + line.len()..]));
        }
        at += line.len();
    }
    Ok((Value::Null, card))
}

/// Writes an object as YAML, in block style, strings quoted unless plain beyond doubt.
pub(crate) fn write(object: &serde_json::Map<String, Value>) -> String {
    let mut out = String::new();
    write_object(&mut out, object, 0);
    out
}

fn write_object(out: &mut String, object: &serde_json::Map<String, Value>, indent: usize) {
    for (key, value) in object {
        out.extend(std::iter::repeat_n(' ', indent));
        out.push_str(&scalar(key));
        out.push(':');
        write_value(out, value, indent);
    }
}

fn write_value(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            out.push('\n');
            write_object(out, object, indent + 2);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            for item in items {
                out.extend(std::iter::repeat_n(' ', indent));
                out.push('-');
                match item {
                    Value::Object(object) if !object.is_empty() => {
                        // The first key stands beside the dash, the others below it.
                        let mut block = String::new();
                        write_object(&mut block, object, indent + 2);
                        out.push(' ');
                        out.push_str(block.trim_start());
                    }
                    other => write_value(out, other, indent + 2),
                }
            }
        }
        Value::Object(_) => out.push_str(" {}\n"),
        Value::Array(_) => out.push_str(" []\n"),
        Value::String(text) => {
            out.push(' ');
            out.push_str(&scalar(text));
            out.push('\n');
        }
        other => {
            out.push(' ');
            out.push_str(&other.to_string());
            out.push('\n');
        }
    }
}

/// A string as it is where nobody could read it as something else, else in double quotes.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        // YAML 1.1, which the Hub's tools read, takes these for booleans, nulls and numbers.
        && !["y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf", "infinity"]
            .contains(&text.to_ascii_lowercase().as_str());
    if plain {
        return text.to_string();
    }
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // What YAML calls not printable, and its other line breaks.
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                out.push_str(&format!("\\U{:08x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn front_matter_is_split_off() {
        let (matter, rest) = front_matter("---\nlicense: mit\ntags: [a, b]\n---\n# Title\n").unwrap();
        assert_eq!((matter, rest), (json!({"license": "mit", "tags": ["a", "b"]}), "# Title\n"));
        assert_eq!(front_matter("# No matter\n").unwrap(), (Value::Null, "# No matter\n"));
        assert_eq!(front_matter("---\nnever: closed\n").unwrap().0, Value::Null);
        assert!(front_matter("---\na: [\n---\n").is_err());
    }

    #[test]
    fn bombs_do_not_go_off() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let aliases = vec![format!("*a{}", i - 1); 9].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
        }
        assert!(parse_yaml(&bomb).is_err());
        assert!(parse_yaml(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn written_as_the_hub_expects() {
        let object = json!({
            "license": "no", "language": ["en", "no"], "empty": [],
            "model-index": [{"name": "x: y", "results": [{"task": {"type": "text-generation"}, "value": 1.5}]}],
        });
        assert_eq!(
            write(object.as_object().unwrap()),
            "license: \"no\"\nlanguage:\n- en\n- \"no\"\nempty: []\nmodel-index:\n- name: \"x: y\"\n  results:\n  \
             - task:\n      type: text-generation\n    value: 1.5\n"
        );
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[a-zA-Z0-9:# -]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map("[a-z:# ]{1,5}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value in any_json()) {
            let object = serde_json::Map::from_iter([("key".to_string(), value)]);
            let text = write(&object);
            let back = parse_yaml(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            prop_assert_eq!(back, Value::Object(object), "{}", text);
        }
    }
}
