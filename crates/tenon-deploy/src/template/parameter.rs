//! Parameters that Ollama knows, and the types of their values.

use serde_json::{Number, Value as Json};

use super::prompt::nearest;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Int,
    Float,
    Bool,
    /// Given once for every element.
    Texts,
}

/// `api.Options` of Ollama, the parameters of the runner included.
const KNOWN: [(&str, Type); 20] = [
    ("num_keep", Type::Int),
    ("seed", Type::Int),
    ("num_predict", Type::Int),
    ("top_k", Type::Int),
    ("top_p", Type::Float),
    ("min_p", Type::Float),
    ("typical_p", Type::Float),
    ("repeat_last_n", Type::Int),
    ("temperature", Type::Float),
    ("repeat_penalty", Type::Float),
    ("presence_penalty", Type::Float),
    ("frequency_penalty", Type::Float),
    ("stop", Type::Texts),
    ("num_ctx", Type::Int),
    ("num_batch", Type::Int),
    ("num_gpu", Type::Int),
    ("main_gpu", Type::Int),
    ("use_mmap", Type::Bool),
    ("num_thread", Type::Int),
    ("draft_num_predict", Type::Int),
];

/// Parameters of earlier versions, which Ollama passes over with a warning.
const PASSED_OVER: [&str; 9] = [
    "penalize_newline",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
];

/// What a parameter's line says.
#[derive(Debug, PartialEq)]
pub(crate) enum Parameter {
    /// One value.
    Value(Json),
    /// One more of several.
    Element(String),
    /// Nothing, any more.
    PassedOver,
}

/// Reads a parameter's value, or says what is wrong with it.
pub(crate) fn parameter(name: &str, value: &str) -> Result<Parameter, String> {
    if PASSED_OVER.contains(&name) {
        return Ok(Parameter::PassedOver);
    }
    let Some((_, kind)) = KNOWN.iter().find(|(known, _)| *known == name) else {
        let near = nearest(name, KNOWN.iter().map(|(known, _)| *known));
        return Err(format!("Ollama has no parameter {name}{near}"));
    };
    let wrong = |what: &str| format!("{name} takes {what}, not {value:?}");
    let parsed = match kind {
        Type::Texts => return Ok(Parameter::Element(value.into())),
        Type::Int => Json::from(value.parse::<i64>().map_err(|_| wrong("an integer"))?),
        Type::Bool => Json::Bool(match value {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
            _ => return Err(wrong("true or false")),
        }),
        Type::Float => {
            let number = value.parse::<f64>().ok().filter(|number| (*number as f32).is_finite());
            Json::Number(number.and_then(Number::from_f64).ok_or_else(|| wrong("a number"))?)
        }
    };
    Ok(Parameter::Value(parsed))
}

/// Whether a text is a version as Ollama's REQUIRES takes it: `0.14`, `v0.14.0-rc1+build`.
pub(crate) fn is_version(text: &str) -> bool {
    let text = text.strip_prefix('v').unwrap_or(text);
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
    let numbers: Vec<&str> = core.split('.').collect();
    let is_number = |part: &&str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part.len() == 1 || !part.starts_with('0'))
    };
    let identifiers = |part: &str, numbers_are_plain: bool| {
        part.split('.').all(|id| {
            let all_digits = id.bytes().all(|b| b.is_ascii_digit());
            !id.is_empty()
                && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !(numbers_are_plain && all_digits && id.len() > 1 && id.starts_with('0'))
        })
    };
    // Only a whole version has more behind it.
    let plain = pre.is_none() && build.is_none();
    numbers.len() <= 3
        && (numbers.len() == 3 || plain)
        && numbers.iter().all(is_number)
        && pre.is_none_or(|pre| identifiers(pre, true))
        && build.is_none_or(|build| identifiers(build, false))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn values_have_their_types() {
        assert_eq!(parameter("top_k", "40").unwrap(), Parameter::Value(Json::from(40)));
        assert_eq!(parameter("temperature", "0.7").unwrap(), Parameter::Value(Json::from(0.7)));
        assert_eq!(parameter("use_mmap", "F").unwrap(), Parameter::Value(Json::from(false)));
        assert_eq!(parameter("stop", "1").unwrap(), Parameter::Element("1".into()));
        assert_eq!(parameter("mirostat", "x").unwrap(), Parameter::PassedOver);
        for (name, value) in [
            ("top_k", "4.5"),
            ("temperature", "hot"),
            ("temperature", "NaN"),
            ("temperature", "1e39"),
            ("use_mmap", "yes"),
        ] {
            assert!(parameter(name, value).unwrap_err().contains(name), "{name} {value}");
        }
        assert_eq!(
            parameter("temprature", "1").unwrap_err(),
            "Ollama has no parameter temprature (did you mean temperature?)"
        );
    }

    #[test]
    fn versions_are_those_of_go() {
        for good in ["0.14.0", "v1", "1.2", "0.14.0-rc1", "1.2.3+b01", "1.0.0-0.x"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", "v", "latest", "01.2.3", "1.2.3.4", "1.2-rc1", "1.2.3-01", "1.2.3-", ">=0.14"] {
            assert!(!is_version(bad), "{bad}");
        }
    }
}
