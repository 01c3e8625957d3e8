//! Values of literals: strings, characters and numbers as Go writes them.

use super::tree::Number;

/// The text of a quoted or raw string, quotes included.
pub(crate) fn unquote(quoted: &str) -> Result<String, String> {
    if let Some(raw) = quoted.strip_prefix('`') {
        return Ok(raw.trim_end_matches('`').replace('\r', ""));
    }
    let inner = &quoted[1..quoted.len() - 1];
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while !rest.is_empty() {
        match take_char(&mut rest, '"')? {
            Unit::Byte(byte) => bytes.push(byte),
            Unit::Char(c) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("{quoted} is not UTF-8"))
}

enum Unit {
    Byte(u8),
    Char(char),
}

fn take_char(rest: &mut &str, quote: char) -> Result<Unit, String> {
    let mut chars = rest.chars();
    let c = chars.next().ok_or("an empty literal")?;
    if c != '\\' {
        *rest = chars.as_str();
        return Ok(Unit::Char(c));
    }
    let escape = chars.next().ok_or("a \\ with nothing behind it")?;
    let digits = |count: usize, radix: u32, digits: &str| {
        let text = digits.get(..count).ok_or_else(|| format!("\\{escape} needs {count} digits"))?;
        if !text.chars().all(|c| c.is_digit(radix)) {
            return Err(format!("\\{escape} needs {count} digits, not {text:?}"));
        }
        u32::from_str_radix(text, radix).map_err(|e| e.to_string())
    };
    let behind = chars.as_str();
    let (unit, used) = match escape {
        'a' => (Unit::Char('\x07'), 0),
        'b' => (Unit::Char('\x08'), 0),
        'f' => (Unit::Char('\x0c'), 0),
        'n' => (Unit::Char('\n'), 0),
        'r' => (Unit::Char('\r'), 0),
        't' => (Unit::Char('\t'), 0),
        'v' => (Unit::Char('\x0b'), 0),
        '\\' => (Unit::Char('\\'), 0),
        c if c == quote => (Unit::Char(c), 0),
        'x' => (Unit::Byte(digits(2, 16, behind)? as u8), 2),
        'u' | 'U' => {
            let count = if escape == 'u' { 4 } else { 8 };
            let code = digits(count, 16, behind)?;
            let c = char::from_u32(code).ok_or_else(|| format!("U+{code:04X} is no character"))?;
            (Unit::Char(c), count)
        }
        '0'..='7' => {
            let octal = &rest[1..];
            let value = digits(3, 8, octal)?;
            let byte = u8::try_from(value).map_err(|_| format!("\\{} is larger than \\377", &octal[..3]))?;
            (Unit::Byte(byte), 2)
        }
        c => return Err(format!("\\{c} is no escape of Go")),
    };
    *rest = &behind[used..];
    Ok(unit)
}

/// `'x'`.
pub(crate) fn character(quoted: &str) -> Result<Number, String> {
    let mut rest = &quoted[1..];
    if rest.starts_with('\'') {
        return Err(format!("{quoted} has no character in it"));
    }
    let value = match take_char(&mut rest, '\'')? {
        Unit::Byte(byte) => i64::from(byte),
        Unit::Char(c) => i64::from(u32::from(c)),
    };
    if rest != "'" {
        return Err(format!("{quoted} has more than one character in it; a string stands in double quotes"));
    }
    Ok(Number::Int(value))
}

/// `1+2i`.
pub(crate) fn complex(text: &str) -> Result<Number, String> {
    let inner = text.strip_suffix('i').unwrap_or(text);
    // The sign of the imaginary part is the last that does not belong to an exponent.
    let split = inner
        .char_indices()
        .skip(1)
        .filter(|&(i, c)| matches!(c, '+' | '-') && !inner[..i].ends_with(['e', 'E', 'p', 'P']))
        .map(|(i, _)| i)
        .last();
    let parts = split.and_then(|i| Some((float(&inner[..i])?, float(&inner[i..])?)));
    parts.map(|(re, im)| Number::Complex(re, im)).ok_or_else(|| format!("{text} is no number"))
}

/// Any other number.
pub(crate) fn number(text: &str) -> Result<Number, String> {
    if let Some(imaginary) = text.strip_suffix('i').and_then(float) {
        return Ok(Number::Complex(0.0, imaginary));
    }
    let int = integer(text);
    let is_float = |text: &str| {
        let digits = text.trim_start_matches(['+', '-']);
        if digits.len() > 1 && digits[..2].eq_ignore_ascii_case("0x") {
            return digits.contains(['p', 'P']);
        }
        digits.contains(['.', 'e', 'E'])
    };
    match int {
        Some(value) => match i64::try_from(value) {
            Ok(value) => Ok(Number::Int(value)),
            Err(_) if value > 0 && value <= i128::from(u64::MAX) && !text.starts_with('+') => {
                Ok(Number::TooLarge)
            }
            Err(_) => Err(format!("{text} is too large for an integer")),
        },
        None => match float(text) {
            Some(value) if is_float(text) => Ok(Number::Float(value)),
            _ => Err(format!("{text} is no number")),
        },
    }
}

/// Whether the underscores stand where Go lets them: between digits, or behind the prefix of a base.
fn underscores_are_fine(digits: &str, has_prefix: bool) -> bool {
    let mut before = if has_prefix { '0' } else { '^' };
    for c in digits.chars() {
        if c == '_' && !before.is_ascii_alphanumeric() {
            return false;
        }
        if before == '_' && !c.is_ascii_alphanumeric() {
            return false;
        }
        before = c;
    }
    before != '_'
}

fn integer(text: &str) -> Option<i128> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits, prefixed) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..], true),
        Some("0o") => (8, &lower[2..], true),
        Some("0b") => (2, &lower[2..], true),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, &lower[1..], true),
        _ => (10, lower.as_str(), false),
    };
    if !underscores_are_fine(digits, prefixed) {
        return None;
    }
    let digits = digits.replace('_', "");
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    Some(sign * i128::from_str_radix(&digits, radix).ok()?)
}

fn float(text: &str) -> Option<f64> {
    let unsigned = text.trim_start_matches(['+', '-']);
    let hexadecimal = unsigned.len() > 1 && unsigned[..2].eq_ignore_ascii_case("0x");
    let digits = if hexadecimal { &unsigned[2..] } else { unsigned };
    if !unsigned.contains(|c: char| c.is_ascii_digit()) || !underscores_are_fine(digits, hexadecimal) {
        return None;
    }
    let plain = text.replace('_', "");
    if !hexadecimal {
        return plain.parse::<f64>().ok().filter(|value| value.is_finite());
    }
    let sign = if plain.starts_with('-') { -1.0 } else { 1.0 };
    let lower = plain.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let (mantissa, exponent) = lower[2..].split_once('p')?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mut value = 0.0f64;
    let digits = format!("{whole}{fraction}");
    // More digits than a mantissa holds would be rounded twice; no template needs them.
    if digits.is_empty() || digits.len() > 13 {
        return None;
    }
    for c in digits.chars() {
        value = value * 16.0 + f64::from(c.to_digit(16)?);
    }
    let exponent = exponent.parse::<i32>().ok()?.checked_sub(4 * fraction.len() as i32)?;
    Some(sign * value * 2f64.powi(exponent)).filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_are_those_of_go() {
        for (text, value) in [
            ("0", Number::Int(0)),
            ("-0", Number::Int(0)),
            ("+7", Number::Int(7)),
            ("017", Number::Int(15)),
            ("0b101", Number::Int(5)),
            ("0x_ff", Number::Int(255)),
            ("1_000", Number::Int(1000)),
            ("1.5", Number::Float(1.5)),
            (".5", Number::Float(0.5)),
            ("1e3", Number::Float(1000.0)),
            ("0x1p4", Number::Float(16.0)),
            ("3i", Number::Complex(0.0, 3.0)),
            ("9223372036854775807", Number::Int(i64::MAX)),
            ("9223372036854775808", Number::TooLarge),
        ] {
            assert_eq!(number(text).unwrap(), value, "{text}");
        }
        for text in ["089", "1__0", "0x", "1e", "18446744073709551616", "1_", "0b2"] {
            assert!(number(text).is_err(), "{text}");
        }
        assert_eq!(complex("1+2i").unwrap(), Number::Complex(1.0, 2.0));
        assert_eq!(complex("1e+3-2i").unwrap(), Number::Complex(1000.0, -2.0));
        assert_eq!(character(r"'\n'").unwrap(), Number::Int(10));
        assert!(character("'ab'").is_err() && character("''").is_err() && character(r#"'\"'"#).is_err());
    }

    #[test]
    fn strings_are_those_of_go() {
        assert_eq!(unquote(r#""a\n\t\"\x41\101\u00e9""#).unwrap(), "a\n\t\"AAé");
        assert_eq!(unquote(r#""\xc3\xa9""#).unwrap(), "é");
        assert_eq!(unquote("`a\\n\r`").unwrap(), "a\\n");
        for bad in [r#""\q""#, r#""\'""#, r#""\x4""#, r#""\400""#, r#""\ud800""#, r#""\xff""#] {
            assert!(unquote(bad).is_err(), "{bad}");
        }
    }
}
