//! A value of the configuration and where it stands, so that every fault names its place.

use std::cell::RefCell;

use serde_json::{Map, Value};

use crate::setting::brief;
use crate::{ConfigFault, Error};

/// A value and where it stands.
pub(crate) struct Node<'a> {
    pub(crate) value: &'a Value,
    pub(crate) place: String,
    pub(crate) notes: &'a RefCell<Vec<String>>,
}

/// Keys of the outermost mapping.
pub(crate) const TOP: [&str; 12] = [
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "dtype",
    "out_dtype",
    "parameters",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "name",
];

/// Keys of mappings within, and the parameters that stand most often where they should not.
const INNER: [&str; 5] = ["sources", "model", "layer_range", "weight", "density"];

/// Whether a key means something somewhere, so that it is not merely ignored where it does not. A `name` is
/// anybody's.
fn is_key(key: &str) -> bool {
    key != "name" && (TOP.contains(&key) || INNER.contains(&key))
}

impl<'a> Node<'a> {
    pub(crate) fn at(&self, key: &str) -> String {
        if self.place.is_empty() { key.to_string() } else { format!("{}.{key}", self.place) }
    }

    pub(crate) fn fault(&self, fault: ConfigFault) -> Error {
        let place = if self.place.is_empty() { "the configuration".into() } else { self.place.clone() };
        Error::Config { place, fault }
    }

    pub(crate) fn unexpected(&self, expected: &'static str) -> Error {
        self.fault(ConfigFault::Unexpected { found: brief(self.value), expected })
    }

    /// The fields of a mapping. Of others than `known` a note is made, as mergekit ignores them; what may
    /// be one of them misspelt, or in the wrong place, is refused.
    pub(crate) fn fields(&self, known: &[&str]) -> Result<&'a Map<String, Value>, Error> {
        let Value::Object(fields) = self.value else { return Err(self.unexpected("a mapping")) };
        for key in fields.keys().filter(|key| !known.contains(&key.as_str())) {
            let place = self.at(&key.chars().take(60).collect::<String>());
            let nearest = known.iter().find(|known| is_near(key, known)).map(|key| key.to_string());
            if nearest.is_some() || is_key(key) {
                return Err(Error::Config { place, fault: ConfigFault::UnknownKey { nearest } });
            }
            self.notes.borrow_mut().push(format!("{place} means nothing; it is ignored"));
        }
        Ok(fields)
    }

    pub(crate) fn get(&self, key: &str) -> Option<Node<'a>> {
        let value = self.value.get(key).filter(|value| !value.is_null())?;
        Some(Node { value, place: self.at(key), notes: self.notes })
    }

    pub(crate) fn need(&self, key: &str) -> Result<Node<'a>, Error> {
        self.get(key).ok_or_else(|| {
            Node { value: &Value::Null, place: self.at(key), notes: self.notes }
                .unexpected("a value; it must be there")
        })
    }

    pub(crate) fn items(&self) -> Result<Vec<Node<'a>>, Error> {
        let Value::Array(items) = self.value else { return Err(self.unexpected("a list")) };
        if items.is_empty() {
            return Err(
                self.fault(ConfigFault::Unexpected { found: "an empty list".into(), expected: "a list" })
            );
        }
        let node = |(i, value)| Node { value, place: format!("{}[{i}]", self.place), notes: self.notes };
        Ok(items.iter().enumerate().map(node).collect())
    }

    pub(crate) fn text(&self, expected: &'static str) -> Result<&'a str, Error> {
        self.value.as_str().filter(|text| !text.is_empty()).ok_or_else(|| self.unexpected(expected))
    }
}

/// Whether a key may be another misspelt: two letters differ at most, or one begins with the other.
fn is_near(key: &str, other: &str) -> bool {
    if other.starts_with(key) || key.starts_with(other) {
        return true;
    }
    // Levenshtein's distance, a row of his table after the other; keys are short.
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in key.bytes().take(60).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let change = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    key.len() > 3 && row[other.len()] <= 2
}
