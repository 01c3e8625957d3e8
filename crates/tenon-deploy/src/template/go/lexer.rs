//! The words of a Go template: text, and what stands between `{{` and `}}`.
//!
//! The rules are those of Go's `text/template/parse`, trim markers included.

use super::tree::Position;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Char,
    CharConstant,
    Complex,
    Assign,
    Declare,
    End,
    Field,
    Identifier,
    LeftDelimiter,
    LeftParen,
    Number,
    Pipe,
    RawString,
    RightDelimiter,
    RightParen,
    Space,
    String,
    Text,
    Variable,
    Dot,
    Keyword,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token<'t> {
    pub(crate) kind: Kind,
    pub(crate) at: Position,
    pub(crate) text: &'t str,
}

/// A mistake found while reading words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) at: Position,
    pub(crate) reason: String,
}

const SPACES: [char; 4] = [' ', '\t', '\r', '\n'];
const KEYWORDS: [&str; 11] =
    ["block", "break", "continue", "define", "else", "end", "if", "range", "nil", "template", "with"];

/// All words up to the end of the text or the first mistake.
pub(crate) fn words(text: &str) -> (Vec<Token<'_>>, Option<Mistake>) {
    let mut lexer = Lexer { text, at: 0, words: Vec::new() };
    let mistake = lexer.run().err();
    let words = lexer.words;
    (words, mistake)
}

struct Lexer<'t> {
    text: &'t str,
    at: Position,
    words: Vec<Token<'t>>,
}

fn mistake<T>(at: Position, reason: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake { at, reason: reason.into() })
}

fn is_space(c: char) -> bool {
    SPACES.contains(&c)
}

pub(crate) fn is_alphanumeric(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric() || (!c.is_ascii() && c.is_alphabetic())
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn push(&mut self, kind: Kind, from: Position) {
        self.words.push(Token { kind, at: from, text: &self.text[from..self.at] });
    }

    fn run(&mut self) -> Result<(), Mistake> {
        loop {
            let from = self.at;
            let Some(open) = self.rest().find("{{") else {
                self.at = self.text.len();
                if from < self.at {
                    self.push(Kind::Text, from);
                }
                self.push(Kind::End, self.at);
                return Ok(());
            };
            self.at += open;
            let action = self.at;
            let trims = trims_before(&self.text[action + 2..]);
            let text = &self.text[from..action];
            let text = if trims { text.trim_end_matches(SPACES) } else { text };
            if !text.is_empty() {
                self.words.push(Token { kind: Kind::Text, at: from, text });
            }
            self.at = action + 2 + if trims { 2 } else { 0 };
            if self.rest().starts_with("/*") {
                self.comment(action)?;
            } else {
                self.words.push(Token { kind: Kind::LeftDelimiter, at: action, text: "{{" });
                self.action(action)?;
            }
        }
    }

    fn comment(&mut self, action: Position) -> Result<(), Mistake> {
        let Some(close) = self.rest()[2..].find("*/") else {
            return mistake(action, "the comment is not closed: */ and }} are missing");
        };
        self.at += 2 + close + 2;
        match self.right_delimiter() {
            Some(trims) => self.pass_delimiter(trims),
            None => return mistake(self.at, "a comment ends with */ directly before }}"),
        }
        Ok(())
    }

    /// Whether `}}` comes here, and whether a trim marker precedes it.
    fn right_delimiter(&self) -> Option<bool> {
        let rest = self.rest();
        if trims_after(rest) && rest[2..].starts_with("}}") {
            return Some(true);
        }
        rest.starts_with("}}").then_some(false)
    }

    fn pass_delimiter(&mut self, trims: bool) {
        self.at += if trims { 4 } else { 2 };
        if trims {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start_matches(SPACES).len();
        }
    }

    fn action(&mut self, action: Position) -> Result<(), Mistake> {
        let mut parens = 0usize;
        loop {
            let from = self.at;
            if let Some(trims) = self.right_delimiter() {
                if parens > 0 {
                    return mistake(from, "a parenthesis is not closed before }}");
                }
                self.at += if trims { 2 } else { 0 };
                self.words.push(Token { kind: Kind::RightDelimiter, at: self.at, text: "}}" });
                self.at = from;
                self.pass_delimiter(trims);
                return Ok(());
            }
            let Some(c) = self.peek() else {
                return mistake(action, "the action is not closed: }} is missing");
            };
            match c {
                c if is_space(c) => {
                    // The space before "-}}" belongs to the delimiter.
                    while self.peek().is_some_and(is_space) && self.right_delimiter().is_none() {
                        self.at += 1;
                    }
                    self.push(Kind::Space, from);
                    continue;
                }
                '"' | '\'' => self.quoted(c)?,
                '`' => {
                    let Some(close) = self.rest()[1..].find('`') else {
                        return mistake(from, "the raw string is not closed: ` is missing");
                    };
                    self.at += close + 2;
                    self.push(Kind::RawString, from);
                }
                '$' => self.name(Kind::Variable)?,
                '.' if !self.rest()[1..].starts_with(|c: char| c.is_ascii_digit())
                    && self.rest().len() > 1 =>
                {
                    self.name(Kind::Field)?;
                }
                c if c == '.' || c == '+' || c == '-' || c.is_ascii_digit() => self.number()?,
                c if is_alphanumeric(c) => self.identifier()?,
                ':' => {
                    if !self.rest().starts_with(":=") {
                        return mistake(from, "expected :=");
                    }
                    self.at += 2;
                    self.push(Kind::Declare, from);
                }
                _ => {
                    self.at += c.len_utf8();
                    match c {
                        '=' => self.push(Kind::Assign, from),
                        '|' => self.push(Kind::Pipe, from),
                        '(' => {
                            parens += 1;
                            self.push(Kind::LeftParen, from);
                        }
                        ')' if parens == 0 => return mistake(from, "a ) that no ( opens"),
                        ')' => {
                            parens -= 1;
                            self.push(Kind::RightParen, from);
                        }
                        c if c.is_ascii_graphic() => self.push(Kind::Char, from),
                        c => {
                            let code = u32::from(c);
                            return mistake(from, format!("the character {c:?} (U+{code:04X}) in an action"));
                        }
                    }
                }
            }
        }
    }

    /// Skips letters and digits behind the first character, which is `.` or `$` or a letter.
    fn pass_name(&mut self) -> Result<(), Mistake> {
        while self.peek().is_some_and(is_alphanumeric) {
            self.at += self.peek().map_or(0, char::len_utf8);
        }
        match self.peek() {
            None | Some(' ' | '\t' | '\r' | '\n' | '.' | ',' | '|' | ':' | ')' | '(') => Ok(()),
            _ if self.rest().starts_with("}}") => Ok(()),
            Some(c) => {
                mistake(self.at, format!("the character {c:?} in or behind a name; put a space before it"))
            }
        }
    }

    fn name(&mut self, kind: Kind) -> Result<(), Mistake> {
        let from = self.at;
        self.at += 1;
        self.pass_name()?;
        let bare_dot = kind == Kind::Field && self.at == from + 1;
        self.push(if bare_dot { Kind::Dot } else { kind }, from);
        Ok(())
    }

    fn identifier(&mut self) -> Result<(), Mistake> {
        let from = self.at;
        self.pass_name()?;
        let kind = match &self.text[from..self.at] {
            word if KEYWORDS.contains(&word) => Kind::Keyword,
            "true" | "false" => Kind::Bool,
            _ => Kind::Identifier,
        };
        self.push(kind, from);
        Ok(())
    }

    fn quoted(&mut self, quote: char) -> Result<(), Mistake> {
        let from = self.at;
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((offset, c)) = chars.next() {
            match c {
                '\n' => break,
                '\\' if matches!(chars.next(), None | Some((_, '\n'))) => break,
                c if c == quote => {
                    self.at += offset + 1;
                    self.push(if quote == '"' { Kind::String } else { Kind::CharConstant }, from);
                    return Ok(());
                }
                _ => {}
            }
        }
        mistake(from, format!("the string is not closed: {quote} is missing on its line"))
    }

    fn number(&mut self) -> Result<(), Mistake> {
        let from = self.at;
        let mut ok = self.scan_number();
        let mut kind = Kind::Number;
        if ok && matches!(self.peek(), Some('+' | '-')) {
            ok = self.scan_number() && self.text[..self.at].ends_with('i');
            kind = Kind::Complex;
        }
        if !ok {
            return mistake(from, format!("{:?} is no number", &self.text[from..self.at]));
        }
        self.push(kind, from);
        Ok(())
    }

    fn accept(&mut self, set: &str) -> bool {
        let found = self.peek().is_some_and(|c| set.contains(c));
        self.at += usize::from(found);
        found
    }

    /// As wide as Go's: what is wrong in it is found when its value is taken.
    fn scan_number(&mut self) -> bool {
        const DECIMAL: &str = "0123456789_";
        self.accept("+-");
        let mut digits = DECIMAL;
        let mut hexadecimal = false;
        if self.accept("0") {
            if self.accept("xX") {
                digits = "0123456789abcdefABCDEF_";
                hexadecimal = true;
            } else if self.accept("oO") {
                digits = "01234567_";
            } else if self.accept("bB") {
                digits = "01_";
            }
        }
        while self.accept(digits) {}
        if self.accept(".") {
            while self.accept(digits) {}
        }
        if (digits == DECIMAL && self.accept("eE")) || (hexadecimal && self.accept("pP")) {
            self.accept("+-");
            while self.accept(DECIMAL) {}
        }
        self.accept("i");
        if let Some(c) = self.peek().filter(|c| is_alphanumeric(*c)) {
            self.at += c.len_utf8();
            return false;
        }
        true
    }
}

fn trims_before(s: &str) -> bool {
    let mut chars = s.chars();
    chars.next() == Some('-') && chars.next().is_some_and(is_space)
}

fn trims_after(s: &str) -> bool {
    let mut chars = s.chars();
    chars.next().is_some_and(is_space) && chars.next() == Some('-')
}
