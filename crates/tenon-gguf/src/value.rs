//! Key-value metadata, in order.

use serde_json::Value as Json;

/// A value. Arrays hold values of one type.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // GGUF's own types
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Bools(Vec<bool>),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Strings(Vec<String>),
    /// An array of any other type, as its type's number, its length and its bytes.
    Other(u32, u64, Vec<u8>),
}

impl Value {
    const ARRAY: u32 = 9;

    /// Number of its type; of its elements' type, for an array.
    fn type_id(&self) -> u32 {
        match self {
            Value::U8(_) => 0,
            Value::I8(_) => 1,
            Value::U16(_) => 2,
            Value::I16(_) => 3,
            Value::U32(_) | Value::U32s(_) => 4,
            Value::I32(_) | Value::I32s(_) => 5,
            Value::F32(_) | Value::F32s(_) => 6,
            Value::Bool(_) | Value::Bools(_) => 7,
            Value::String(_) | Value::Strings(_) => 8,
            Value::U64(_) => 10,
            Value::I64(_) => 11,
            Value::F64(_) => 12,
            Value::Other(id, ..) => *id,
        }
    }

    /// Elements, if it is an array.
    pub fn array_len(&self) -> Option<u64> {
        Some(match self {
            Value::Bools(v) => v.len() as u64,
            Value::U32s(v) => v.len() as u64,
            Value::I32s(v) => v.len() as u64,
            Value::F32s(v) => v.len() as u64,
            Value::Strings(v) => v.len() as u64,
            Value::Other(_, len, _) => *len,
            _ => return None,
        })
    }

    /// The value as JSON; of an array, `most` elements at most. Numbers that are not finite are `null`.
    pub fn to_json(&self, most: usize) -> Json {
        fn list<T: Clone + Into<Json>>(values: &[T], most: usize) -> Json {
            Json::Array(values.iter().take(most).cloned().map(Into::into).collect())
        }
        match self {
            Value::U8(v) => (*v).into(),
            Value::I8(v) => (*v).into(),
            Value::U16(v) => (*v).into(),
            Value::I16(v) => (*v).into(),
            Value::U32(v) => (*v).into(),
            Value::I32(v) => (*v).into(),
            Value::F32(v) => short(*v),
            Value::Bool(v) => (*v).into(),
            Value::String(v) => v.clone().into(),
            Value::U64(v) => (*v).into(),
            Value::I64(v) => (*v).into(),
            Value::F64(v) => (*v).into(),
            Value::Bools(v) => list(v, most),
            Value::U32s(v) => list(v, most),
            Value::I32s(v) => list(v, most),
            Value::F32s(v) => Json::Array(v.iter().take(most).map(|v| short(*v)).collect()),
            Value::Strings(v) => list(v, most),
            Value::Other(id, _, bytes) => others(*id, bytes, most),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(len) = self.array_len() {
            out.extend(Self::ARRAY.to_le_bytes());
            out.extend(self.type_id().to_le_bytes());
            out.extend(len.to_le_bytes());
        } else {
            out.extend(self.type_id().to_le_bytes());
        }
        match self {
            Value::U8(v) => out.push(*v),
            Value::I8(v) => out.extend(v.to_le_bytes()),
            Value::U16(v) => out.extend(v.to_le_bytes()),
            Value::I16(v) => out.extend(v.to_le_bytes()),
            Value::U32(v) => out.extend(v.to_le_bytes()),
            Value::I32(v) => out.extend(v.to_le_bytes()),
            Value::F32(v) => out.extend(v.to_le_bytes()),
            Value::Bool(v) => out.push(u8::from(*v)),
            Value::String(v) => write_text(v, out),
            Value::U64(v) => out.extend(v.to_le_bytes()),
            Value::I64(v) => out.extend(v.to_le_bytes()),
            Value::F64(v) => out.extend(v.to_le_bytes()),
            Value::Bools(v) => out.extend(v.iter().map(|v| u8::from(*v))),
            Value::U32s(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
            Value::I32s(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
            Value::F32s(v) => v.iter().for_each(|v| out.extend(v.to_le_bytes())),
            Value::Strings(v) => v.iter().for_each(|v| write_text(v, out)),
            Value::Other(_, _, bytes) => out.extend(bytes),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::U8(v) => v.fmt(f),
            Value::I8(v) => v.fmt(f),
            Value::U16(v) => v.fmt(f),
            Value::I16(v) => v.fmt(f),
            Value::U32(v) => v.fmt(f),
            Value::I32(v) => v.fmt(f),
            Value::F32(v) => v.fmt(f),
            Value::Bool(v) => v.fmt(f),
            Value::String(v) => v.fmt(f),
            Value::U64(v) => v.fmt(f),
            Value::I64(v) => v.fmt(f),
            Value::F64(v) => v.fmt(f),
            array => write!(f, "[{} values]", array.array_len().unwrap_or(0)),
        }
    }
}

/// A number with the digits that it takes to tell it from its neighbours.
fn short(value: f32) -> Json {
    value.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}

/// Elements of the types that no file is known to have arrays of.
fn others(id: u32, bytes: &[u8], most: usize) -> Json {
    fn each<const N: usize, T: Into<Json>>(bytes: &[u8], most: usize, read: fn([u8; N]) -> T) -> Json {
        Json::Array(bytes.as_chunks::<N>().0.iter().take(most).map(|bytes| read(*bytes).into()).collect())
    }
    match id {
        0 => each(bytes, most, u8::from_le_bytes),
        1 => each(bytes, most, i8::from_le_bytes),
        2 => each(bytes, most, u16::from_le_bytes),
        3 => each(bytes, most, i16::from_le_bytes),
        10 => each(bytes, most, u64::from_le_bytes),
        11 => each(bytes, most, i64::from_le_bytes),
        12 => each(bytes, most, f64::from_le_bytes),
        _ => Json::Array(vec![]),
    }
}

pub(crate) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Keys and values in the order of their making.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// All keys as JSON, at most `most` elements of each array.
    pub fn to_json(&self, most: usize) -> Json {
        self.iter().map(|(key, value)| (key.to_string(), value.to_json(most))).collect()
    }

    /// Sets a value; one that is there keeps its place.
    pub fn set(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        match self.entries.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known = value,
            None => self.entries.push((key, value)),
        }
    }

    /// Adds a key that is known to be new.
    pub(crate) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    /// Sets a value at the end, wherever it was before.
    pub fn set_last(&mut self, key: &str, value: Value) {
        self.entries.retain(|(known, _)| known != key);
        self.entries.push((key.to_string(), value));
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// The text of a key.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.entries {
            write_text(key, out);
            value.write(out);
        }
    }
}
