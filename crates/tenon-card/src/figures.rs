//! Numbers as people read them.

use serde_json::Value;

/// Bytes in decimal units: `4.33 MB`.
pub(crate) fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A count: `1.24 B`.
pub(crate) fn count(n: u64) -> String {
    scaled(n, &["", "K", "M", "B", "T", "Q"]).trim_end().to_string()
}

fn scaled(n: u64, units: &[&str]) -> String {
    let (mut value, mut unit) = (n as f64, 0);
    // 999.5 would be shown as 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { decimals(value) };
    format!("{value:.digits$} {}", units[unit])
}

fn decimals(value: f64) -> usize {
    match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    }
}

/// A share: `3.2 %`.
pub(crate) fn percent(share: f64) -> String {
    match share * 100.0 {
        p if !p.is_finite() => "not finite".into(),
        0.0 => "0 %".into(),
        p if p < 0.01 => format!("{p:.1e} %"),
        p if p < 10.0 => format!("{p:.2} %"),
        p => format!("{p:.1} %"),
    }
}

/// A number with four significant digits.
pub(crate) fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e15 {
        return format!("{value}");
    }
    if !value.is_finite() {
        return "not finite".into();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..9).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let digits = (3 - magnitude).clamp(0, 8) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// A time: `0.12 s`, `3 min 20 s`.
pub(crate) fn seconds(s: f64) -> String {
    match s {
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 59.95 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {} s", (s / 60.0) as u64, (s % 60.0) as u64),
        s => format!("{} h {} min", (s / 3600.0) as u64, (s % 3600.0 / 60.0) as u64),
    }
}

/// Longest value shown.
const MAX_SHOWN: usize = 400;

/// Any JSON, briefly.
pub(crate) fn value(value: &Value) -> String {
    let text = match value {
        Value::Null => "none".to_string(),
        Value::Bool(true) => "yes".to_string(),
        Value::Bool(false) => "no".to_string(),
        Value::Number(n) => match n.as_i64() {
            Some(n) => n.to_string(),
            None => n.as_f64().map_or_else(|| n.to_string(), number),
        },
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
            items.iter().map(self::value).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    match text.char_indices().nth(MAX_SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_well() {
        let shown: Vec<_> = [1.0755815505981445, 0.0002, 2e-5, 42.0, 123456.789, -0.25].map(number).into();
        assert_eq!(shown, ["1.076", "0.0002", "2.00e-5", "42", "123457", "-0.25"]);
        let shown: Vec<_> = [0.0, 0.5, 0.01234, 1e-7].map(percent).into();
        assert_eq!(shown, ["0 %", "50.0 %", "1.23 %", "1.0e-5 %"]);
        assert_eq!(bytes(4_332_160), "4.33 MB");
    }
}
