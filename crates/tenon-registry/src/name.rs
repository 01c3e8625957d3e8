//! Names of models, which are names of directories too.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A name that is one plain directory name on every file system: 1 to 200 of `A-Z a-z 0-9 . _ -`,
/// beginning with a letter or digit, not ending in a dot, and none that Windows keeps for devices.
///
/// Two names that differ in case only are the same name, as some file systems have it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no name for a model: {reason}")]
pub struct BadName {
    /// The text, shortened.
    pub name: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Longest name. With a suffix for the work in progress it stays below the 255 bytes of file systems.
const MAX_NAME: usize = 200;
/// Longest base name and train name within an automatic name.
const MAX_BASE: usize = 90;
const MAX_TRAIN: usize = 70;

impl ModelName {
    /// Checks a name.
    pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
        let name = name.into();
        let bad = |reason| Err(BadName { name: name.chars().take(60).collect(), reason });
        if name.is_empty() {
            return bad("it is empty");
        }
        if !name.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c)) {
            return bad("only A-Z a-z 0-9 . _ - may be in it");
        }
        if name.len() > MAX_NAME {
            return bad("it is longer than 200 characters");
        }
        if !name.as_bytes()[0].is_ascii_alphanumeric() {
            return bad("it must begin with a letter or a digit");
        }
        if name.ends_with('.') {
            return bad("it must not end in a dot");
        }
        if is_device(&name) {
            return bad("Windows keeps it for a device");
        }
        Ok(Self(name))
    }

    /// A name made from any text: what may not be in a name becomes a dash. Nothing if nothing is left.
    pub fn from_text(text: &str) -> Option<Self> {
        part(text, MAX_BASE)
    }

    /// `[base_model_technical_name]_[train_name]_[YYYYMMDD]_[first4ofTrainingUUID]`, the date in UTC.
    pub fn customized(base: &ModelName, train: &ModelName, date: Timestamp, training: Uuid) -> Self {
        let date = date.strftime("%Y%m%d");
        let (base, train) = (cut(&base.0, MAX_BASE), cut(&train.0, MAX_TRAIN));
        Self(format!("{base}_{train}_{date}_{}", first4(training)))
    }

    /// `[customized_model_name]_s_[first4ofSavingUUID]`.
    pub fn complete(customized: &ModelName, saving: Uuid) -> Self {
        Self(format!("{}_s_{}", cut(&customized.0, MAX_NAME - 7), first4(saving)))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn first4(uuid: Uuid) -> String {
    uuid.simple().to_string()[..4].to_string()
}

fn cut(name: &str, max: usize) -> &str {
    &name[..name.len().min(max)]
}

/// Whether Windows keeps the name, with whatever ending, for a device.
fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    if !(3..=4).contains(&stem.len()) {
        return false;
    }
    let stem = stem.to_ascii_uppercase();
    let numbered = |prefix| {
        stem.strip_prefix(prefix).is_some_and(|n: &str| n.len() == 1 && n.as_bytes()[0].is_ascii_digit())
    };
    ["CON", "PRN", "AUX", "NUL"].contains(&stem.as_str()) || numbered("COM") || numbered("LPT")
}

fn part(text: &str, max: usize) -> Option<ModelName> {
    let mut name = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || "._".contains(c) {
            name.push(c);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = cut(name.trim_start_matches(['.', '_', '-']), max).trim_end_matches(['.', '-', '_']);
    let name = if is_device(name) { format!("{name}-model") } else { name.to_string() };
    ModelName::new(name).ok()
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for ModelName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> String {
        name.0
    }
}

impl TryFrom<String> for ModelName {
    type Error = BadName;
    fn try_from(name: String) -> Result<Self, BadName> {
        Self::new(name)
    }
}

impl FromStr for ModelName {
    type Err = BadName;
    fn from_str(name: &str) -> Result<Self, BadName> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_would_lead_elsewhere_are_refused() {
        let long = "x".repeat(201);
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a\\b",
            "-rf",
            ".hidden",
            "a b",
            "naïve",
            "a\0b",
            "CON",
            "nul.txt",
            "Com1",
            "LPT9.gguf",
            "dot.",
            &long,
        ] {
            assert!(ModelName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["Llama-3.2-1B", "7b", "a_b.c-d", "console", "com10", "COM", &long[1..]] {
            assert!(ModelName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn automatic_names_are_as_the_design_has_them() {
        let date: Timestamp = "2026-03-09T23:59:59Z".parse().unwrap();
        let uuid = Uuid::from_u128(0xabcd_ef01_2345_4678_89ab_cdef_0123_4567);
        let name = |text| ModelName::new(text).unwrap();
        let customized = ModelName::customized(&name("Llama-3.2-1B"), &name("my-lora"), date, uuid);
        assert_eq!(customized.as_str(), "Llama-3.2-1B_my-lora_20260309_abcd");
        assert_eq!(
            ModelName::complete(&customized, uuid).as_str(),
            "Llama-3.2-1B_my-lora_20260309_abcd_s_abcd"
        );
        let long = name(&"x".repeat(200));
        let customized = ModelName::customized(&long, &long, date, uuid);
        assert!(ModelName::new(ModelName::complete(&customized, uuid).as_str()).is_ok());
        assert_eq!(ModelName::from_text("meta llama / Llama: 3 ").unwrap().as_str(), "meta-llama-Llama-3");
        assert_eq!(ModelName::from_text("nul").unwrap().as_str(), "nul-model");
        assert_eq!(ModelName::from_text("///"), None);
    }

    proptest! {
        #[test]
        fn whatever_the_text_the_names_made_of_it_are_valid(base in ".*", train in ".*", id: u128) {
            if let (Some(base), Some(train)) = (ModelName::from_text(&base), ModelName::from_text(&train)) {
                let id = Uuid::from_u128(id);
                let customized = ModelName::customized(&base, &train, Timestamp::UNIX_EPOCH, id);
                prop_assert!(ModelName::new(customized.as_str()).is_ok());
                prop_assert!(ModelName::new(ModelName::complete(&customized, id).as_str()).is_ok());
            }
        }
    }
}
