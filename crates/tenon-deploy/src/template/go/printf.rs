//! `print`, `println` and the verbs of `printf` that templates use.

use super::value::{Value, float};

/// `fmt.Sprint` and `fmt.Sprintln`: a space goes between two operands of which none is a string,
/// or between all, with a newline behind.
pub(crate) fn print(arguments: &[Value], line: bool) -> Result<String, String> {
    let mut out = String::new();
    for (i, argument) in arguments.iter().enumerate() {
        let is_text = |value: &Value| matches!(value, Value::Text(_));
        if i > 0 && (line || !(is_text(argument) || is_text(&arguments[i - 1]))) {
            out.push(' ');
        }
        argument.print_into(&mut out)?;
    }
    if line {
        out.push('\n');
    }
    Ok(out)
}

/// `fmt.Sprintf`.
pub(crate) fn printf(format: &str, arguments: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut next = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = Directive::default();
        while let Some(&flag) = chars.peek() {
            match flag {
                '-' => directive.left = true,
                '+' => directive.plus = true,
                ' ' => directive.space = true,
                '#' => directive.sharp = true,
                '0' => directive.zero = true,
                _ => break,
            }
            chars.next();
        }
        directive.width = number(&mut chars)?;
        if chars.peek() == Some(&'.') {
            chars.next();
            directive.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some('*' | '[') => {
                return Err("printf with * or [] is not understood here; write the width as a number".into());
            }
            Some(verb) => match next.next() {
                None => out.push_str(&format!("%!{verb}(MISSING)")),
                Some(value) => directive.write(verb, value, &mut out)?,
            },
        }
    }
    let left: Vec<&Value> = next.collect();
    if !left.is_empty() {
        return Err(format!("printf has {} more arguments than verbs", left.len()));
    }
    Ok(out)
}

fn number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, String> {
    let mut value = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        chars.next();
        value = Some(value.unwrap_or(0) * 10 + digit as usize);
        if value > Some(1000) {
            return Err("printf with a width beyond 1000".into());
        }
    }
    Ok(value)
}

#[derive(Default)]
struct Directive {
    left: bool,
    plus: bool,
    space: bool,
    sharp: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

impl Directive {
    fn write(&self, verb: char, value: &Value, out: &mut String) -> Result<(), String> {
        if self.sharp || self.space {
            return Err(format!("printf with %#{verb} or \"% {verb}\" is not understood here"));
        }
        let sign = |negative: bool| {
            if negative {
                "-"
            } else if self.plus {
                "+"
            } else {
                ""
            }
        };
        let integer = match value {
            Value::Int(n) => Some(*n),
            Value::Byte(n) => Some(i64::from(*n)),
            _ => None,
        };
        let magnitude = integer.map(i64::unsigned_abs);
        let negative = integer.is_some_and(|n| n < 0);
        let radix = |digits: String| {
            let digits = match self.precision {
                Some(precision) => format!("{digits:0>precision$}"),
                None => digits,
            };
            format!("{}{digits}", sign(negative))
        };
        let cut = |text: &str| match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.to_string(),
        };
        let text = match (verb, value, magnitude) {
            ('v' | 'd', _, Some(n)) => radix(n.to_string()),
            ('b', _, Some(n)) => radix(format!("{n:b}")),
            ('o', _, Some(n)) => radix(format!("{n:o}")),
            ('x', _, Some(n)) => radix(format!("{n:x}")),
            ('X', _, Some(n)) => radix(format!("{n:X}")),
            ('c', _, Some(n)) => {
                u32::try_from(n).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string()
            }
            ('v', Value::Float(n), _) if self.precision.is_none() => {
                let plus = if self.plus && *n >= 0.0 { "+" } else { "" };
                format!("{plus}{}", float(*n))
            }
            ('f' | 'F', Value::Float(n), _) => {
                let precision = self.precision.unwrap_or(6);
                format!("{}{:.precision$}", sign(n.is_sign_negative()), n.abs())
            }
            ('v' | 't', Value::Bool(b), _) => b.to_string(),
            ('s' | 'v', Value::Text(text), _) => cut(text),
            ('q', Value::Text(text), _) => quote(&cut(text)),
            ('x', Value::Text(text), _) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            ('X', Value::Text(text), _) => text.bytes().map(|byte| format!("{byte:02X}")).collect(),
            ('s', value, _) if value.has_string_method() => cut(&value.print()?),
            ('v', value, _) => {
                let mut text = String::new();
                value.print_into(&mut text)?;
                text
            }
            (verb, value, _) => {
                return Err(format!("printf: %{verb} does not fit {}", value.kind()));
            }
        };
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        let zero = self.zero
            && !self.left
            && (integer.is_some() && self.precision.is_none()
                || matches!(value, Value::Float(_) | Value::Text(_)));
        if self.left {
            out.push_str(&text);
            out.extend(std::iter::repeat_n(' ', missing));
        } else if zero {
            let (sign, digits) =
                text.split_at(usize::from(text.starts_with(['-', '+']) && !matches!(value, Value::Text(_))));
            out.push_str(sign);
            out.extend(std::iter::repeat_n('0', missing));
            out.push_str(digits);
        } else {
            out.extend(std::iter::repeat_n(' ', missing));
            out.push_str(&text);
        }
        Ok(())
    }
}

/// `strconv.Quote`.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if crate::template::printable(c) => out.push(c),
            c if u32::from(c) < 0x80 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}
