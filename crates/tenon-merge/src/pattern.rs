//! PEFT's patterns: Python regular expressions matched against module names.

use fancy_regex::Regex;

use crate::{AdapterConfig, Error};

/// Numbers by pattern, as `rank_pattern` and `alpha_pattern` hold them.
///
/// The first pattern in the file's order for which
/// `re.match(rf"(.*\.)?({pattern})$", module)` succeeds gives the number
/// (PEFT, `utils/other.py`, `get_pattern_key`).
#[derive(Debug)]
pub(crate) struct Patterns {
    entries: Vec<(Regex, f64)>,
}

/// `pattern` as a regular expression that must match a whole name (Python's `re.fullmatch`);
/// errors name `field`.
pub(crate) fn whole_name(config: &AdapterConfig, field: &str, pattern: &str) -> Result<Regex, Error> {
    // \z: Python's $ would also allow a newline after it, which no module name has.
    Regex::new(&format!(r"\A(?:{pattern})\z")).map_err(|e| Error::Pattern {
        path: config.path().into(),
        field: field.into(),
        pattern: pattern.into(),
        reason: e.to_string(),
    })
}

impl Patterns {
    pub(crate) fn read(config: &AdapterConfig, field: &str) -> Result<Self, Error> {
        let compile = |(pattern, number): (&str, f64)| {
            Ok((whole_name(config, field, &format!(r"(?:.*\.)?(?:{pattern})"))?, number))
        };
        let entries =
            config.numbers_by_pattern(field)?.into_iter().map(compile).collect::<Result<_, Error>>()?;
        Ok(Self { entries })
    }

    /// As [`Self::read`], of whole numbers above 0.
    pub(crate) fn counts(config: &AdapterConfig, field: &str) -> Result<Self, Error> {
        let patterns = Self::read(config, field)?;
        match patterns.entries.iter().all(|(_, n)| *n >= 1.0 && n.fract() == 0.0) {
            true => Ok(patterns),
            false => Err(config.wrong(field, "whole numbers above 0")),
        }
    }

    /// The count that a module should have, `default` where no pattern matches. Where several do, the one
    /// that is stored: see [`Self::all`].
    pub(crate) fn settle(&self, module: &str, default: u64, stored: u64) -> u64 {
        let mut counts = self.all(module).map(|n| n as u64).peekable();
        let wanted = counts.peek().copied().unwrap_or(default);
        if counts.any(|count| count == stored) { stored } else { wanted }
    }

    /// The numbers of all patterns that match, in the file's order.
    ///
    /// PEFT sorts the keys when it saves a configuration, so the first in the
    /// file need not be the first that training went by.
    pub(crate) fn all<'a>(&'a self, module: &'a str) -> impl Iterator<Item = f64> + 'a {
        // A pattern that backtracks past the engine's limit counts as not matching.
        self.entries.iter().filter(|(regex, _)| regex.is_match(module).unwrap_or(false)).map(|(_, n)| *n)
    }

    /// The numbers of all patterns.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = f64> {
        self.entries.iter().map(|(_, number)| *number)
    }

    /// The number of the first pattern that matches.
    pub(crate) fn find(&self, module: &str) -> Option<f64> {
        self.all(module).next()
    }
}
