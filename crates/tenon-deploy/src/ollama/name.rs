//! Names of models as Ollama has them: `[[host/]namespace/]model[:tag]`, whatever the case.
//!
//! Source: Ollama's `types/model/name.go`. A tag that is not given is `latest`.

use tenon_checkpoint::Digest;

use crate::Error;

/// Longest model and tag.
const MAX_PART: usize = 80;

/// A name that a person gave, with its tag; refused where Ollama would refuse it.
pub(super) fn checked(wanted: &str) -> Result<String, Error> {
    let bad = |reason: &str| {
        Err(Error::BadModelName { name: wanted.chars().take(200).collect(), reason: reason.into() })
    };
    let (path, tag) = split(wanted);
    let parts: Vec<&str> = path.split('/').collect();
    if parts.len() > 3 {
        return bad("it has more than host/namespace/model");
    }
    for (at, part) in parts.iter().rev().enumerate() {
        let (what, max, also) = match at {
            0 => ("model", MAX_PART, "._-"),
            1 => ("namespace", MAX_PART, "_-"),
            _ => ("host", 350, "._-:"),
        };
        if !is_part(part, max, also) {
            return bad(&format!(
                "its {what} must be 1 to {max} of A-Z a-z 0-9 {}, beginning with a letter, digit or _",
                also.chars().map(String::from).collect::<Vec<_>>().join(" ")
            ));
        }
    }
    if !is_part(tag, MAX_PART, "._-") {
        return bad("its tag must be 1 to 80 of A-Z a-z 0-9 . _ -, beginning with a letter, digit or _");
    }
    Ok(format!("{path}:{tag}"))
}

/// A name made of any text: what Ollama does not allow becomes a dash, and what is cut off is told
/// apart by a digest.
pub(super) fn mapped(wanted: &str) -> String {
    let (model, tag) = split(wanted);
    format!("{}:{}", part(model, "model"), part(tag, "latest"))
}

fn part(text: &str, empty: &str) -> String {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || "._".contains(c) {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_start_matches(['.', '-']).trim_end_matches(['.', '-']);
    if name.is_empty() {
        return empty.into();
    }
    if name.len() <= MAX_PART {
        return name.into();
    }
    let digest = Digest::of(text.as_bytes()).to_string();
    format!("{}-{}", name[..MAX_PART - 9].trim_end_matches(['.', '-']), &digest[..8])
}

fn split(name: &str) -> (&str, &str) {
    match name.rfind(':') {
        Some(at) if at > name.rfind('/').unwrap_or(0) => (&name[..at], &name[at + 1..]),
        _ => (name, "latest"),
    }
}

fn is_part(part: &str, max: usize, also: &str) -> bool {
    (1..=max).contains(&part.len())
        && part
            .chars()
            .enumerate()
            .all(|(at, c)| c.is_ascii_alphanumeric() || c == '_' || (at > 0 && also.contains(c)))
}

/// Whether two names mean the same model.
pub(super) fn same(a: &str, b: &str) -> bool {
    let whole = |name: &str| {
        let (path, tag) = split(name);
        let path = path.strip_prefix("registry.ollama.ai/").unwrap_or(path);
        let path = path.strip_prefix("library/").unwrap_or(path);
        format!("{path}:{tag}").to_ascii_lowercase()
    };
    whole(a) == whole(b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_ollama_refuses_are_refused_here() {
        for good in ["a", "my-model", "me/my.model:v1", "host:5000/me/m", "_x:latest", &"x".repeat(80)] {
            assert!(checked(good).is_ok(), "{good}");
        }
        assert_eq!(checked("m").unwrap(), "m:latest");
        assert_eq!(checked("h:1/n/m").unwrap(), "h:1/n/m:latest");
        for bad in [
            "",
            "a b",
            "ä",
            "a:",
            ":a",
            "/a",
            "a/",
            "a//b",
            "n.s/m",
            "../m",
            "-a",
            "a:b:c",
            "a/b/c/d",
            &"x".repeat(81),
        ] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn long_names_stay_apart() {
        let long = |end: &str| mapped(&format!("{}{end}:q8_0", "x".repeat(100)));
        assert_ne!(long("a"), long("b"));
        assert!(checked(&long("a")).is_ok());
        assert_eq!(
            mapped("Llama-3.2-1B_x_20260101_abcd_s_1234:q4_K_M"),
            "Llama-3.2-1B_x_20260101_abcd_s_1234:q4_K_M"
        );
        assert!(same("A:latest", "a") && same("library/a", "a:latest") && !same("a:b", "a"));
    }

    proptest! {
        #[test]
        fn whatever_the_text_its_name_is_allowed(text in ".*") {
            let name = mapped(&text);
            prop_assert_eq!(checked(&name).unwrap(), name);
        }
    }
}
