//! The commands of a Modelfile, read character by character as Ollama does:
//! values end where their line ends, or where their quotes do.

use super::fault::Fault;
use super::printable;

/// A command and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) name: Name,
    pub(crate) value: String,
    /// Where the command is.
    pub(crate) at: usize,
    /// Where each byte of the value is, and where it ends.
    pub(crate) places: Vec<usize>,
}

impl Command {
    /// Place in the file of a byte of the value.
    pub(crate) fn place(&self, byte: usize) -> usize {
        self.places.get(byte).or(self.places.last()).copied().unwrap_or(self.at)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    From,
    License,
    Template,
    System,
    Adapter,
    Draft,
    Renderer,
    Parser,
    Requires,
    Parameter(String),
    Message(String),
}

const NAMES: [&str; 11] = [
    "FROM",
    "TEMPLATE",
    "SYSTEM",
    "PARAMETER",
    "LICENSE",
    "MESSAGE",
    "RENDERER",
    "PARSER",
    "REQUIRES",
    "ADAPTER",
    "DRAFT",
];

/// Roles of messages in a Modelfile.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// Whether a text is a Modelfile and not a Go template: its first word is a command, and a template,
/// a renderer, a model or a parameter is among its commands (or there is no action anywhere).
pub(crate) fn is_modelfile(text: &str) -> bool {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines =
        text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let Some(first) = lines.next() else { return false };
    let word = |line: &str| line.split([' ', '\t', '\r']).next().unwrap_or_default().to_string();
    // "From" may begin a sentence of a template.
    let tells = |line: &str| {
        let word = word(line);
        ["FROM", "TEMPLATE", "PARAMETER", "RENDERER"]
            .iter()
            .any(|name| word == *name || word == name.to_lowercase())
    };
    let starts = NAMES.contains(&word(first).to_ascii_uppercase().as_str());
    starts && (tells(first) || lines.any(tells) || !text.contains("{{"))
}

/// A character that Ollama would leave out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) character: char,
    pub(crate) at: usize,
}

/// All commands, and the characters that are lost on the way.
pub(crate) fn commands(text: &str) -> Result<(Vec<Command>, Vec<Dropped>), Fault> {
    let mut reader =
        Reader { text, at: if text.starts_with('\u{feff}') { 3 } else { 0 }, dropped: Vec::new() };
    let mut commands = Vec::new();
    while let Some(command) = reader.command()? {
        commands.push(command);
    }
    Ok((commands, reader.dropped))
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    dropped: Vec<Dropped>,
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

fn is_newline(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn fault<T>(&self, at: usize, reason: impl Into<String>) -> Result<T, Fault> {
        Err(Fault::at(self.text, at, reason))
    }

    fn skip(&mut self, skips: impl Fn(char) -> bool) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches(skips).len();
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let from = self.at;
        self.skip(belongs);
        self.text[from..self.at].into()
    }

    fn command(&mut self) -> Result<Option<Command>, Fault> {
        loop {
            self.skip(|c| is_space(c) || is_newline(c));
            if self.peek() != Some('#') {
                break;
            }
            self.skip(|c| !is_newline(c));
        }
        let at = self.at;
        if self.peek().is_none() {
            return Ok(None);
        }
        let word = self.word(|c| c.is_ascii_alphabetic());
        let upper = word.to_ascii_uppercase();
        if !NAMES.contains(&upper.as_str()) {
            let shown =
                if word.is_empty() { self.peek().map_or_else(String::new, |c| c.to_string()) } else { word };
            let near = super::prompt::nearest(&shown, NAMES.into_iter());
            return self.fault(
                at,
                format!("{shown:?} is no command of a Modelfile{near}; there are {}", NAMES.join(", ")),
            );
        }
        self.separator(&upper)?;
        let name = match upper.as_str() {
            "FROM" => Name::From,
            "TEMPLATE" => Name::Template,
            "SYSTEM" => Name::System,
            "LICENSE" => Name::License,
            "ADAPTER" => Name::Adapter,
            "DRAFT" => Name::Draft,
            "RENDERER" => Name::Renderer,
            "PARSER" => Name::Parser,
            "REQUIRES" => Name::Requires,
            "PARAMETER" => {
                let place = self.at;
                let name = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
                if name.is_empty() {
                    return self.fault(place, "PARAMETER is followed by a name and a value");
                }
                self.separator(&format!("PARAMETER {name}"))?;
                Name::Parameter(name)
            }
            _ => {
                let place = self.at;
                let role = self.word(|c| c.is_ascii_alphabetic());
                if !ROLES.contains(&role.as_str()) {
                    return self
                        .fault(place, format!("the role {role:?} is not one of {}", ROLES.join(", ")));
                }
                self.separator(&format!("MESSAGE {role}"))?;
                Name::Message(role)
            }
        };
        let (value, places) = self.value(&upper)?;
        Ok(Some(Command { name, value, at, places }))
    }

    /// One space; more belong to the value, which is trimmed.
    fn separator(&mut self, what: &str) -> Result<(), Fault> {
        match self.peek() {
            Some(c) if is_space(c) => {
                self.at += 1;
                Ok(())
            }
            None => self.fault(self.at, format!("{what} has no value")),
            Some(c) if is_newline(c) => self.fault(self.at, format!("{what} has no value on its line")),
            Some(c) => self.fault(self.at, format!("{c:?} follows {what}; a space and a value should")),
        }
    }

    fn value(&mut self, what: &str) -> Result<(String, Vec<usize>), Fault> {
        let from = self.at;
        let mut raw = String::new();
        let mut places = Vec::new();
        loop {
            let c = self.peek();
            let ends = c.is_none_or(is_newline);
            if ends {
                let trimmed = raw.trim();
                let start = raw.len() - raw.trim_start().len();
                if let Some((skipped, inner)) = unquote(trimmed) {
                    let first = start + skipped;
                    let mut places: Vec<usize> = places[first..first + inner.len()].to_vec();
                    places.push(self.at);
                    return Ok((inner.to_string(), places));
                }
                if c.is_none() {
                    let quotes = if trimmed.starts_with("\"\"\"") { "\"\"\"" } else { "\"" };
                    return self.fault(
                        from + raw.len() - raw.trim_start().len(),
                        format!("the value of {what} opens with {quotes} and is not closed; nothing stands behind the closing quotes on their line"),
                    );
                }
            }
            let Some(c) = c else { continue };
            if printable(c) || is_space(c) || is_newline(c) {
                raw.push(c);
                places.extend(std::iter::repeat_n(self.at, c.len_utf8()));
            } else {
                self.dropped.push(Dropped { character: c, at: self.at });
            }
            self.at += c.len_utf8();
        }
    }
}

/// What is inside the quotes, with the length of the opening ones; `None` while they are open.
fn unquote(value: &str) -> Option<(usize, &str)> {
    for quotes in ["\"\"\"", "\""] {
        if let Some(rest) = value.strip_prefix(quotes) {
            return Some((quotes.len(), rest.strip_suffix(quotes)?));
        }
    }
    Some((0, value))
}
