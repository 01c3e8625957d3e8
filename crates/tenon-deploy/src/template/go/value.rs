//! Values while a template is rendered, and how Go prints them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::rc::Rc;

use serde_json::Value as Json;

use super::shape::{PROPERTY, Record, Shape};

/// A value as Go's `reflect` sees it.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// No value at all: printed as `<no value>`.
    Absent,
    /// A nil in something that can hold anything.
    Nil,
    Bool(bool),
    Int(i64),
    /// A byte of a string, of what `index` takes.
    Byte(u8),
    Float(f64),
    Complex(f64, f64),
    Text(Rc<str>),
    List(List),
    Map(Map),
    Record(&'static Record, Rc<[Value]>),
    /// A map that keeps its order; `None` is a nil pointer.
    Ordered(Option<Rc<[(String, Value)]>>),
}

#[derive(Debug, Clone)]
pub(crate) struct List {
    pub(crate) items: Rc<[Value]>,
    pub(crate) prints: ListPrints,
    /// Nil, which JSON calls null.
    pub(crate) nil: bool,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListPrints {
    /// `[a b]`.
    Plain,
    /// As JSON.
    Json,
    /// As JSON schema's types: one bare, several as a list.
    Types,
    /// As memory addresses.
    Addresses,
}

#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) entries: Rc<BTreeMap<String, Value>>,
    pub(crate) prints_json: bool,
    pub(crate) nil: bool,
    /// What a missing key gives.
    pub(crate) element: Shape,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text.into())
    }
}

/// What JSON of unknown shape is to Go: numbers are floats, objects are sorted.
impl From<&Json> for Value {
    fn from(json: &Json) -> Self {
        match json {
            Json::Null => Value::Nil,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
            Json::String(s) => Value::from(s.as_str()),
            Json::Array(items) => Value::list(items.iter().map(Value::from).collect(), ListPrints::Plain),
            Json::Object(map) => Value::Map(Map {
                entries: Rc::new(map.iter().map(|(key, value)| (key.clone(), value.into())).collect()),
                prints_json: false,
                nil: false,
                element: Shape::Any,
            }),
        }
    }
}

/// A value that cannot be written the way Go would, and why.
pub(crate) type Unprintable = String;

impl Value {
    pub(crate) fn list(items: Vec<Value>, prints: ListPrints) -> Self {
        Value::List(List { items: items.into(), prints, nil: false })
    }

    /// A list that is nil when it is empty.
    pub(crate) fn list_or_nil(items: Vec<Value>, prints: ListPrints) -> Self {
        let nil = items.is_empty();
        Value::List(List { items: items.into(), prints, nil })
    }

    /// The zero of a shape.
    pub(crate) fn zero(shape: Shape) -> Self {
        match shape {
            Shape::Any | Shape::Variables => Value::Nil,
            Shape::Text => Value::from(""),
            Shape::Int => Value::Int(0),
            Shape::Bool => Value::Bool(false),
            Shape::Record(record) => Value::zero_record(record),
            Shape::List(_) => Value::list_or_nil(Vec::new(), ListPrints::Plain),
            Shape::Map(element) => {
                Value::Map(Map { entries: Rc::default(), prints_json: true, nil: true, element: *element })
            }
            Shape::OrderedMap => Value::Ordered(None),
        }
    }

    fn zero_record(record: &'static Record) -> Self {
        let fields = record.fields.iter().map(|field| match field.shape {
            // The types of JSON schema are the one list with a way of its own to be printed.
            Shape::List(_) if field.name == "Type" => Value::list_or_nil(Vec::new(), ListPrints::Types),
            shape => Value::zero(shape),
        });
        Value::Record(record, fields.collect())
    }

    /// A nil that lies in something that can hold anything is no value once it is looked at.
    pub(crate) fn looked_at(self) -> Self {
        if matches!(self, Value::Nil) { Value::Absent } else { self }
    }

    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Value::Absent | Value::Nil)
    }

    pub(crate) fn truth(&self) -> bool {
        match self {
            Value::Absent | Value::Nil => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Byte(n) => *n != 0,
            Value::Float(n) => *n != 0.0,
            Value::Complex(re, im) => *re != 0.0 || *im != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::List(list) => !list.items.is_empty(),
            Value::Map(map) => !map.entries.is_empty(),
            Value::Record(..) => true,
            Value::Ordered(map) => map.is_some(),
        }
    }

    /// What it is, for messages.
    pub(crate) fn kind(&self) -> String {
        match self {
            Value::Absent | Value::Nil => "nothing".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(_) | Value::Byte(_) => "an integer".into(),
            Value::Float(_) => "a float".into(),
            Value::Complex(..) => "a complex number".into(),
            Value::Text(_) => "a string".into(),
            Value::List(_) => "a list".into(),
            Value::Map(_) | Value::Ordered(_) => "a map".into(),
            Value::Record(record, _) => format!("a {}", record.name),
        }
    }

    /// Whether Go prints it with a method of its own.
    pub(crate) fn has_string_method(&self) -> bool {
        match self {
            Value::List(list) => matches!(list.prints, ListPrints::Json | ListPrints::Types),
            Value::Map(map) => map.prints_json,
            Value::Record(record, _) => record.prints_json,
            _ => false,
        }
    }

    /// As `fmt.Print` writes it, standing alone.
    pub(crate) fn print(&self) -> Result<String, Unprintable> {
        let mut out = String::new();
        match self {
            Value::Absent => out.push_str("<no value>"),
            _ => self.print_into(&mut out)?,
        }
        Ok(out)
    }

    pub(crate) fn print_into(&self, out: &mut String) -> Result<(), Unprintable> {
        match self {
            Value::Absent | Value::Nil => out.push_str("<nil>"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => out.push_str(&n.to_string()),
            Value::Byte(n) => out.push_str(&n.to_string()),
            Value::Float(n) => out.push_str(&float(*n)),
            Value::Complex(re, im) => {
                let im = float(*im);
                let sign = if im.starts_with(['-', '+']) { "" } else { "+" };
                out.push_str(&format!("({}{sign}{im}i)", float(*re)));
            }
            Value::Text(text) => out.push_str(text),
            Value::List(list) => match list.prints {
                ListPrints::Json => self.json_into(out)?,
                ListPrints::Types if list.items.len() < 2 => {
                    list.items.iter().try_for_each(|item| item.print_into(out))?;
                }
                ListPrints::Addresses if !list.items.is_empty() => {
                    return Err("messages printed as a whole are memory addresses; range over them".into());
                }
                _ => {
                    out.push('[');
                    for (i, item) in list.items.iter().enumerate() {
                        if i > 0 {
                            out.push(' ');
                        }
                        item.print_into(out)?;
                    }
                    out.push(']');
                }
            },
            Value::Map(map) if map.prints_json && map.nil => out.push_str("{}"),
            Value::Map(map) if map.prints_json => self.json_into(out)?,
            Value::Map(map) => {
                out.push_str("map[");
                for (i, (key, value)) in map.entries.iter().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    out.push_str(key);
                    out.push(':');
                    value.print_into(out)?;
                }
                out.push(']');
            }
            Value::Record(record, _) if record.prints_json => self.json_into(out)?,
            Value::Record(_, fields) => {
                out.push('{');
                for (i, field) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(' ');
                    }
                    field.print_into(out)?;
                }
                out.push('}');
            }
            Value::Ordered(None) => out.push_str("<nil>"),
            Value::Ordered(Some(_)) => {
                return Err("properties of a property are printed as a memory address; use json".into());
            }
        }
        Ok(())
    }

    /// As `json.Marshal` writes it.
    pub(crate) fn json(&self) -> Result<String, Unprintable> {
        let mut out = String::new();
        self.json_into(&mut out)?;
        Ok(out)
    }

    fn json_into(&self, out: &mut String) -> Result<(), Unprintable> {
        match self {
            Value::Absent | Value::Nil | Value::Ordered(None) => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => out.push_str(&n.to_string()),
            Value::Byte(n) => out.push_str(&n.to_string()),
            Value::Float(n) if n.is_finite() => out.push_str(&json_float(*n)),
            // json.Marshal fails, and the function json gives what it has: nothing.
            Value::Float(_) | Value::Complex(..) => return Err("JSON has no such number".into()),
            Value::Text(text) => json_text(text, out),
            Value::List(list) if list.nil => out.push_str("null"),
            Value::List(list) if list.prints == ListPrints::Types && list.items.len() == 1 => {
                list.items[0].json_into(out)?;
            }
            Value::List(list) => {
                sequence(out, '[', ']', list.items.iter(), |item, out| item.json_into(out))?;
            }
            Value::Map(map) if map.nil => out.push_str("null"),
            Value::Map(map) => sequence(out, '{', '}', map.entries.iter(), entry)?,
            Value::Ordered(Some(entries)) => {
                sequence(out, '{', '}', entries.iter().map(|(key, value)| (key, value)), entry)?;
            }
            Value::Record(record, values) => {
                let shown = record.fields.iter().zip(values.iter());
                let shown = shown.filter(|(field, value)| !(field.optional && value.is_json_empty()));
                sequence(out, '{', '}', shown, |(field, value), out| {
                    json_text(field.json, out);
                    out.push(':');
                    value.json_into(out)
                })?;
            }
        }
        Ok(())
    }

    fn is_json_empty(&self) -> bool {
        !self.truth() && !matches!(self, Value::Record(..))
    }

    /// The TypeScript type of a property, `any` of everything else.
    pub(crate) fn typescript(&self) -> String {
        let Value::Record(record, fields) = self else { return "any".into() };
        if record.name != PROPERTY.name {
            return "any".into();
        }
        let (Value::List(any_of), Value::List(types)) = (&fields[0], &fields[1]) else { return "any".into() };
        if !any_of.items.is_empty() {
            return any_of.items.iter().map(Value::typescript).collect::<Vec<_>>().join(" | ");
        }
        let names = types.items.iter().map(|item| match item {
            Value::Text(name) => match &**name {
                "string" => "string",
                "number" | "integer" => "number",
                "boolean" => "boolean",
                "array" => "any[]",
                "object" => "Record<string, any>",
                "null" => "null",
                _ => "any",
            },
            _ => "any",
        });
        let names: Vec<_> = names.collect();
        if names.is_empty() { "any".into() } else { names.join(" | ") }
    }
}

fn entry((key, value): (&String, &Value), out: &mut String) -> Result<(), Unprintable> {
    json_text(key, out);
    out.push(':');
    value.json_into(out)
}

fn sequence<T>(
    out: &mut String,
    open: char,
    close: char,
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(T, &mut String) -> Result<(), Unprintable>,
) -> Result<(), Unprintable> {
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push(',');
        }
        write(item, out)?;
    }
    out.push(close);
    Ok(())
}

/// `encoding/json` keeps text safe inside HTML.
fn json_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}') => {
                // Writing to a string does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Shortest digits and the decimal exponent of the first: `0.00123` is ("123", -3).
fn shortest(value: f64) -> (String, i32) {
    let text = format!("{:e}", value.abs());
    let (mantissa, exponent) = text.split_once('e').expect("the format has an exponent");
    (mantissa.replace('.', ""), exponent.parse().expect("an exponent is a number"))
}

fn exponential(value: f64, digits_of_exponent: usize) -> String {
    let (digits, exponent) = shortest(value);
    let sign = if value.is_sign_negative() { "-" } else { "" };
    let fraction = if digits.len() > 1 { format!(".{}", &digits[1..]) } else { String::new() };
    let exponent_sign = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{}{fraction}e{exponent_sign}{:0digits_of_exponent$}", &digits[..1], exponent.abs())
}

/// Exponent from which `%v` writes one, where the digits are the fewest that tell the number.
const SHORTEST: i32 = 6;

/// `%v`.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.into();
    }
    let (_, exponent) = shortest(value);
    if (-4..SHORTEST).contains(&exponent) { format!("{value}") } else { exponential(value, 2) }
}

fn json_float(value: f64) -> String {
    if value == 0.0 || (1e-6..1e21).contains(&value.abs()) {
        return format!("{value}");
    }
    // Exponents are not padded when they are negative: e-9, e+21.
    exponential(value, 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn floats_are_written_as_go_does() {
        let shown: Vec<_> = [1.0, 0.1, 123456.0, 1e6, 1.5e-5, -2.5, 1234567.5].map(float).into();
        assert_eq!(shown, ["1", "0.1", "123456", "1e+06", "1.5e-05", "-2.5", "1.2345675e+06"]);
        let shown: Vec<_> = [1e-7, 1e21, 123456789.0].map(json_float).into();
        assert_eq!(shown, ["1e-7", "1e+21", "123456789"]);
    }
}
