//! `adapter_config.json`, as PEFT of any version wrote it.
//!
//! Fields come and go between versions, and an absent field, a null and an
//! empty object mean the same. A field that nobody here knows means nothing
//! while it is off (false, 0, empty) or its name says that it is about training
//! (a dropout, a learning rate); any other value may change the arithmetic, and
//! is refused rather than ignored.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tenon_checkpoint::read_json;

use crate::Error;

/// A parsed `adapter_config.json`.
#[derive(Debug, Clone)]
pub struct AdapterConfig {
    path: PathBuf,
    fields: Map<String, Value>,
}

/// Fields every method may have that say nothing about the arithmetic of a merge.
const NEUTRAL: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "base_model_class",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "unsloth_fixed",
];

/// Words in the names of fields, of whichever version, that are about training or the file itself.
const OF_TRAINING: &[&str] =
    &["dropout", "lr", "version", "revision", "description", "comment", "author", "license"];

impl AdapterConfig {
    /// Reads the file.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        match read_json(&path)? {
            Value::Object(fields) => Ok(Self { path, fields }),
            other => {
                let expected = "a JSON object".into();
                Err(Error::Field { path, field: "the file".into(), found: kind(&other), expected })
            }
        }
    }

    /// A configuration translated from another tool's at `path`.
    pub fn translated(path: impl Into<PathBuf>, fields: Map<String, Value>) -> Self {
        Self { path: path.into(), fields }
    }

    /// Whether its method becomes weights; if not, why not.
    pub fn check(&self) -> Result<(), Error> {
        crate::method::of(self).map(|_| ())
    }

    /// Where it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All fields as they stand in the file.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The method's name, such as `LORA`.
    pub fn peft_type(&self) -> Result<&str, Error> {
        self.text("peft_type")?.ok_or_else(|| self.wrong("peft_type", "the method's name, such as \"LORA\""))
    }

    /// The base that the adapter was trained on, by the name its trainer used.
    pub fn base_model(&self) -> Option<&str> {
        self.fields.get("base_model_name_or_path")?.as_str()
    }

    /// A field that has a value: not absent, null, or an empty object or list.
    pub(crate) fn value(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| match value {
            Value::Null => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        })
    }

    pub(crate) fn text(&self, field: &str) -> Result<Option<&str>, Error> {
        self.value(field).map(|v| v.as_str().ok_or_else(|| self.wrong(field, "a text"))).transpose()
    }

    pub(crate) fn flag(&self, field: &str) -> Result<bool, Error> {
        self.flag_or(field, false)
    }

    /// A flag, or `absent` where it has no value.
    pub(crate) fn flag_or(&self, field: &str, absent: bool) -> Result<bool, Error> {
        let parse = |v: &Value| v.as_bool().ok_or_else(|| self.wrong(field, "true or false"));
        self.value(field).map_or(Ok(absent), parse)
    }

    pub(crate) fn count(&self, field: &str) -> Result<Option<u64>, Error> {
        let parse = |v: &Value| v.as_u64().filter(|n| *n > 0);
        self.value(field)
            .map(|v| parse(v).ok_or_else(|| self.wrong(field, "a whole number above 0")))
            .transpose()
    }

    pub(crate) fn number(&self, field: &str) -> Result<Option<f64>, Error> {
        let parse = |v: &Value| v.as_f64().filter(|n| n.is_finite());
        self.value(field).map(|v| parse(v).ok_or_else(|| self.wrong(field, "a number"))).transpose()
    }

    /// A list of texts, or one text alone.
    pub(crate) fn texts(&self, field: &str) -> Result<Vec<&str>, Error> {
        let wrong = || self.wrong(field, "a list of texts");
        match self.value(field) {
            None => Ok(vec![]),
            Some(Value::String(text)) => Ok(vec![text]),
            Some(Value::Array(list)) => list.iter().map(|v| v.as_str().ok_or_else(wrong)).collect(),
            Some(_) => Err(wrong()),
        }
    }

    /// An object from patterns to numbers.
    pub(crate) fn numbers_by_pattern(&self, field: &str) -> Result<Vec<(&str, f64)>, Error> {
        let wrong = || self.wrong(field, "an object from patterns to numbers");
        match self.value(field) {
            None => Ok(vec![]),
            Some(Value::Object(map)) => {
                map.iter().map(|(k, v)| Ok((k.as_str(), v.as_f64().ok_or_else(wrong)?))).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    pub(crate) fn wrong(&self, field: &str, expected: &str) -> Error {
        Error::Field {
            path: self.path.clone(),
            field: field.into(),
            found: self.fields.get(field).map_or("absent".into(), short),
            expected: expected.into(),
        }
    }

    pub(crate) fn not_understood(&self, field: &str, why: impl Into<String>) -> Error {
        Error::NotUnderstood {
            path: self.path.clone(),
            field: field.into(),
            found: self.fields.get(field).map_or("absent".into(), short),
            why: why.into(),
        }
    }

    /// Refuses every field with a value that is neither neutral nor among `known`.
    pub(crate) fn refuse_unknown_fields(&self, known: &[&str]) -> Result<(), Error> {
        let means_nothing = |field: &str| match self.value(field) {
            None | Some(Value::Bool(false)) => true,
            Some(Value::Number(number)) if number.as_f64() == Some(0.0) => true,
            Some(Value::String(text)) if text.is_empty() || text == "none" => true,
            Some(_) => field.split('_').any(|word| OF_TRAINING.contains(&word)),
        };
        match self.fields.keys().find(|field| {
            !NEUTRAL.contains(&field.as_str()) && !known.contains(&field.as_str()) && !means_nothing(field)
        }) {
            None => Ok(()),
            Some(field) => {
                Err(self.not_understood(field, "a newer PEFT may have added it; look for a newer Tenon"))
            }
        }
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        other => short(other),
    }
}

/// A value as it may stand in an error.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_that_are_off_or_of_training_mean_nothing() {
        let config = |field: &str, value: Value| {
            let fields = Map::from_iter([("peft_type".into(), "LORA".into()), (field.into(), value)]);
            AdapterConfig::translated("c.json", fields).refuse_unknown_fields(&["r"])
        };
        let nothing = [
            ("new", Value::Null),
            ("new", false.into()),
            ("new", 0.into()),
            ("new", 0.0.into()),
            ("new", "".into()),
            ("new", "none".into()),
            ("new", Value::Array(vec![])),
            ("new_dropout", 0.1.into()),
            ("lorap_emb_lr", 1e-6.into()),
            ("transformers_version", "4.40".into()),
        ];
        for (field, value) in nothing {
            assert!(config(field, value.clone()).is_ok(), "{field}: {value}");
        }
        for (field, value) in
            [("new", Value::from(true)), ("new", 2.into()), ("new", "on".into()), ("lrx", 1.into())]
        {
            let error = config(field, value).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains("not understood"), "{error}");
        }
    }
}
