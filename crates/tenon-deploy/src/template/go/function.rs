//! The functions that a template may call: Go's own and those of Ollama.

use super::printf;
use super::shape::Shape;
use super::value::{List, Value};

/// Names of Go's own functions.
pub(crate) const GO: [&str; 19] = [
    "and", "call", "html", "index", "slice", "js", "len", "not", "or", "print", "printf", "println",
    "urlquery", "eq", "ge", "gt", "le", "lt", "ne",
];

/// Names of the functions that Ollama adds.
pub(crate) const OLLAMA: [&str; 4] = ["json", "currentDate", "yesterdayDate", "toTypeScriptType"];

/// How many arguments a function takes: at least, and at most.
pub(crate) fn arity(name: &str) -> (usize, usize) {
    match name {
        "and" | "call" | "index" | "slice" | "or" | "eq" | "printf" => (1, usize::MAX),
        "len" | "not" | "json" | "toTypeScriptType" => (1, 1),
        "ne" | "ge" | "gt" | "le" | "lt" => (2, 2),
        _ => (0, usize::MAX),
    }
}

/// Whether the argument at a position must be a string.
pub(crate) fn wants_text(name: &str, position: usize) -> bool {
    matches!(name, "currentDate" | "yesterdayDate") || (name == "printf" && position == 0)
}

/// Calls a function; `and` and `or` are not among them, as they do not look at all arguments.
/// `today` is a day in seconds of Unix time.
pub(crate) fn call(name: &str, arguments: &[Value], today: i64) -> Result<Value, String> {
    let texts = || -> Result<String, String> {
        match arguments {
            [Value::Text(text)] => Ok(text.to_string()),
            _ => printf::print(arguments, false),
        }
    };
    Ok(match name {
        "not" => Value::Bool(!arguments[0].truth()),
        "len" => Value::Int(length(&arguments[0])?),
        "index" => index(&arguments[0], &arguments[1..])?,
        "slice" => slice(&arguments[0], &arguments[1..])?,
        "eq" => Value::Bool(equal(&arguments[0], &arguments[1..])?),
        "ne" => Value::Bool(!equal(&arguments[0], &arguments[1..])?),
        "lt" => Value::Bool(less(&arguments[0], &arguments[1])?),
        "le" => Value::Bool(less_or_equal(arguments)?),
        "gt" => Value::Bool(!less_or_equal(arguments)?),
        "ge" => Value::Bool(!less(&arguments[0], &arguments[1])?),
        "print" => printf::print(arguments, false)?.into(),
        "println" => printf::print(arguments, true)?.into(),
        "printf" => {
            let Value::Text(format) = &arguments[0] else { return Err("the format must be a string".into()) };
            printf::printf(format, &arguments[1..])?.into()
        }
        "html" => escape(&texts()?, |c| match c {
            '"' => Some("&#34;"),
            '\'' => Some("&#39;"),
            '&' => Some("&amp;"),
            '<' => Some("&lt;"),
            '>' => Some("&gt;"),
            '\0' => Some("\u{fffd}"),
            _ => None,
        })
        .into(),
        "js" => escape(&texts()?, |c| match c {
            '\\' => Some("\\\\"),
            '\'' => Some("\\'"),
            '"' => Some("\\\""),
            '<' => Some("\\u003C"),
            '>' => Some("\\u003E"),
            '&' => Some("\\u0026"),
            '=' => Some("\\u003D"),
            '\n' => Some("\\u000A"),
            '\r' => Some("\\u000D"),
            '\t' => Some("\\u0009"),
            _ => None,
        })
        .into(),
        "urlquery" => url_query(&texts()?).into(),
        // What JSON cannot hold comes out as nothing.
        "json" => arguments[0].json().unwrap_or_default().into(),
        "toTypeScriptType" => arguments[0].typescript().into(),
        "currentDate" => date(today).into(),
        "yesterdayDate" => date(today - 86_400).into(),
        "call" => return Err("nothing that a template gets can be called".into()),
        _ => return Err(format!("there is no function {name}")),
    })
}

fn escape(text: &str, replacement: impl Fn(char) -> Option<&'static str>) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match replacement(c) {
            Some(escaped) => out.push_str(escaped),
            None => out.push(c),
        }
    }
    out
}

fn url_query(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) => out.push(b.into()),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// Year, month and day of a moment in UTC (H. Hinnant, "chrono-compatible low-level date algorithms").
fn date(seconds: i64) -> String {
    let days = seconds.div_euclid(86_400) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

fn length(value: &Value) -> Result<i64, String> {
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(list) => list.items.len(),
        Value::Map(map) => map.entries.len(),
        other => return Err(format!("{} has no length", other.kind())),
    };
    Ok(length as i64)
}

/// A position in something of `length`; `length` itself is let through, as Go does.
fn position(index: &Value, length: usize) -> Result<usize, String> {
    let at = match index {
        Value::Int(at) => *at,
        Value::Byte(at) => i64::from(*at),
        other => return Err(format!("an index must be an integer, not {}", other.kind())),
    };
    match usize::try_from(at) {
        Ok(position) if position <= length => Ok(position),
        _ => Err(format!("the index {at} is out of range; there are {length}")),
    }
}

fn index(item: &Value, indexes: &[Value]) -> Result<Value, String> {
    if item.is_absent() {
        return Err("nothing has no elements".into());
    }
    let mut item = item.clone();
    for at in indexes {
        let out_of_range = |at: usize| format!("the index {at} is out of range");
        item = match &item {
            Value::Text(text) => {
                let at = position(at, text.len())?;
                Value::Byte(*text.as_bytes().get(at).ok_or_else(|| out_of_range(at))?)
            }
            Value::List(list) => {
                let at = position(at, list.items.len())?;
                list.items.get(at).ok_or_else(|| out_of_range(at))?.clone()
            }
            Value::Map(map) => match at {
                Value::Text(key) => {
                    map.entries.get(&**key).cloned().unwrap_or_else(|| Value::zero(map.element))
                }
                other => return Err(format!("the key must be a string, not {}", other.kind())),
            },
            other => return Err(format!("{} has no elements", other.kind())),
        };
    }
    Ok(item)
}

fn slice(item: &Value, indexes: &[Value]) -> Result<Value, String> {
    if item.is_absent() {
        return Err("nothing cannot be sliced".into());
    }
    if indexes.len() > 3 {
        return Err("slice takes three positions at most".into());
    }
    let length = match item {
        Value::Text(_) if indexes.len() == 3 => return Err("a string is sliced by two positions".into()),
        Value::Text(text) => text.len(),
        Value::List(list) => list.items.len(),
        other => return Err(format!("{} cannot be sliced", other.kind())),
    };
    let mut range = [0, length, length];
    for (slot, at) in range.iter_mut().zip(indexes) {
        *slot = position(at, length)?;
    }
    let [from, to, capacity] = range;
    if from > to || to > capacity {
        return Err(format!("from {from} to {to} is no slice"));
    }
    Ok(match item {
        Value::Text(text) => {
            Value::from(text.get(from..to).ok_or("the slice cuts a character of several bytes in two")?)
        }
        Value::List(list) => Value::List(List { items: list.items[from..to].into(), ..list.clone() }),
        _ => unreachable!("only strings and lists have a length above"),
    })
}

fn incomparable(a: &Value, b: &Value) -> String {
    format!("{} and {} cannot be compared", a.kind(), b.kind())
}

fn equal(first: &Value, others: &[Value]) -> Result<bool, String> {
    if others.is_empty() {
        return Err("eq needs something to compare with".into());
    }
    for other in others {
        let same = match (first, other) {
            (Value::Bool(a), Value::Bool(b)) => a == b,
            (Value::Int(a), Value::Int(b)) => a == b,
            (Value::Byte(a), Value::Byte(b)) => a == b,
            (Value::Int(a), Value::Byte(b)) | (Value::Byte(b), Value::Int(a)) => *a == i64::from(*b),
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::Complex(a, b), Value::Complex(c, d)) => a == c && b == d,
            (Value::Text(a), Value::Text(b)) => a == b,
            (a, b) if a.is_absent() && b.is_absent() => true,
            // Nothing is like nil; the kinds that hold something are not.
            (a, b) if a.is_absent() || b.is_absent() => {
                let held = if a.is_absent() { b } else { a };
                match held {
                    Value::List(list) => list.nil,
                    Value::Map(map) => map.nil,
                    Value::Ordered(map) => map.is_none(),
                    _ => false,
                }
            }
            (Value::List(a), Value::List(b)) if a.nil || b.nil => a.nil == b.nil,
            (Value::Map(a), Value::Map(b)) if a.nil || b.nil => a.nil == b.nil,
            (a, b) => return Err(incomparable(a, b)),
        };
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

fn less(a: &Value, b: &Value) -> Result<bool, String> {
    Ok(match (a, b) {
        (Value::Int(a), Value::Int(b)) => a < b,
        (Value::Byte(a), Value::Byte(b)) => a < b,
        (Value::Int(a), Value::Byte(b)) => *a < i64::from(*b),
        (Value::Byte(a), Value::Int(b)) => i64::from(*a) < *b,
        (Value::Float(a), Value::Float(b)) => a < b,
        (Value::Text(a), Value::Text(b)) => a < b,
        (a, b) => return Err(incomparable(a, b)),
    })
}

fn less_or_equal(arguments: &[Value]) -> Result<bool, String> {
    Ok(less(&arguments[0], &arguments[1])? || equal(&arguments[0], &arguments[1..])?)
}

/// What a function gives, as far as that can be told before.
pub(crate) fn shape(name: &str) -> Shape {
    match name {
        "not" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" => Shape::Bool,
        "len" => Shape::Int,
        "print" | "println" | "printf" | "html" | "js" | "urlquery" | "json" | "toTypeScriptType"
        | "currentDate" | "yesterdayDate" => Shape::Text,
        _ => Shape::Any,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dates_of_leap_years() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(1_709_251_199), "2024-02-29");
        assert_eq!(date(4_107_542_400), "2100-03-01");
    }
}
