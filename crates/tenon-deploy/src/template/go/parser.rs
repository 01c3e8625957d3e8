//! From words to a tree, with the rules of Go's `text/template/parse`.

use super::lexer::{Kind, Mistake, Token, words};
use super::literal;
use super::tree::{Branch, Command, List, Node, Operand, Pipe, Position, Term, Trees, is_empty};

/// Blocks and parentheses in each other; a template that people wrote has a handful.
const MAX_DEPTH: usize = 128;

/// Parses a template and those that it defines. `is_function` says which names may be called.
pub(crate) fn parse(text: &str, is_function: &dyn Fn(&str) -> bool) -> Result<Trees, Mistake> {
    let (words, mistake) = words(text);
    let mut parser = Parser {
        words,
        mistake,
        next: 0,
        length: text.len(),
        is_function,
        variables: vec!["$".into()],
        ranges: 0,
        depth: 0,
        trees: Trees::new(),
    };
    let mut root = List::new();
    loop {
        match parser.peek() {
            Ok(token) if token.kind == Kind::End => break,
            Ok(token) if token.kind == Kind::LeftDelimiter && parser.keyword_follows("define") => {
                parser.definition()?;
                continue;
            }
            _ => {}
        }
        let at = parser.at();
        match parser.text_or_action()? {
            Item::Node(node) => root.push(node),
            Item::End => return fault(at, "an {{end}} that closes nothing"),
            Item::Else(_) => return fault(at, "an {{else}} outside {{if}}, {{with}} and {{range}}"),
        }
    }
    parser.add(String::new(), root, 0)?;
    Ok(parser.trees)
}

fn fault<T>(at: Position, reason: impl Into<String>) -> Result<T, Mistake> {
    Err(Mistake { at, reason: reason.into() })
}

enum Item {
    Node(Node),
    End,
    /// With what follows on the same action: `if`, `with` or nothing.
    Else(&'static str),
}

struct Parser<'t> {
    words: Vec<Token<'t>>,
    mistake: Option<Mistake>,
    next: usize,
    length: usize,
    is_function: &'t dyn Fn(&str) -> bool,
    variables: Vec<String>,
    ranges: usize,
    depth: usize,
    trees: Trees,
}

impl<'t> Parser<'t> {
    /// The next word, or the mistake that ended their reading.
    fn peek(&self) -> Result<Token<'t>, Mistake> {
        match (self.words.get(self.next), &self.mistake) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(mistake)) => Err(mistake.clone()),
            (None, None) => Ok(Token { kind: Kind::End, at: self.length, text: "" }),
        }
    }

    fn at(&self) -> Position {
        self.words.get(self.next).map_or(self.length, |token| token.at)
    }

    fn take(&mut self) -> Result<Token<'t>, Mistake> {
        let token = self.peek()?;
        self.next += 1;
        Ok(token)
    }

    fn skip_space(&mut self) {
        while self.words.get(self.next).is_some_and(|token| token.kind == Kind::Space) {
            self.next += 1;
        }
    }

    fn peek_word(&mut self) -> Result<Token<'t>, Mistake> {
        self.skip_space();
        self.peek()
    }

    fn take_word(&mut self) -> Result<Token<'t>, Mistake> {
        self.skip_space();
        self.take()
    }

    fn expect(&mut self, kind: Kind, context: &str) -> Result<Token<'t>, Mistake> {
        let token = self.take_word()?;
        if token.kind == kind { Ok(token) } else { self.unexpected(&token, context) }
    }

    fn unexpected<T>(&self, token: &Token<'_>, context: &str) -> Result<T, Mistake> {
        let found = match token.kind {
            Kind::End => "the end of the file".into(),
            _ => format!("{:?}", token.text),
        };
        fault(token.at, format!("{found} has no place in {context}"))
    }

    /// Whether the action that begins here has this keyword first.
    fn keyword_follows(&self, keyword: &str) -> bool {
        let mut words = self.words[self.next + 1..].iter().skip_while(|token| token.kind == Kind::Space);
        words.next().is_some_and(|token| token.kind == Kind::Keyword && token.text == keyword)
    }

    fn deeper(&mut self, at: Position) -> Result<(), Mistake> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return fault(at, format!("more than {MAX_DEPTH} blocks and parentheses in each other"));
        }
        Ok(())
    }

    fn add(&mut self, name: String, list: List, at: Position) -> Result<(), Mistake> {
        match self.trees.get(&name) {
            Some(before) if !is_empty(before) => {
                if is_empty(&list) {
                    return Ok(());
                }
                return fault(at, format!("the template {name:?} is defined twice"));
            }
            _ => self.trees.insert(name, list),
        };
        Ok(())
    }

    /// `{{define "name"}} … {{end}}`.
    fn definition(&mut self) -> Result<(), Mistake> {
        const CONTEXT: &str = "{{define}}, which takes a name in quotes";
        let at = self.take()?.at;
        self.take_word()?;
        let name = self.take_word()?;
        let name = self.template_name(&name, CONTEXT)?;
        self.expect(Kind::RightDelimiter, CONTEXT)?;
        // Nothing around it can be seen from inside.
        let list = self.separate_list(at, "define")?;
        self.add(name, list, at)
    }

    fn separate_list(&mut self, at: Position, what: &str) -> Result<List, Mistake> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".into()]);
        let ranges = std::mem::take(&mut self.ranges);
        let (list, end) = self.list(at, what)?;
        if !matches!(end, Item::End) {
            return fault(at, format!("an {{{{else}}}} in {{{{{what}}}}}"));
        }
        self.variables = variables;
        self.ranges = ranges;
        Ok(list)
    }

    fn list(&mut self, at: Position, what: &str) -> Result<(List, Item), Mistake> {
        self.deeper(at)?;
        let mut list = List::new();
        loop {
            if self.peek_word()?.kind == Kind::End {
                return fault(at, format!("{{{{{what}}}}} is not closed: {{{{end}}}} is missing"));
            }
            match self.text_or_action()? {
                Item::Node(node) => list.push(node),
                end => {
                    self.depth -= 1;
                    return Ok((list, end));
                }
            }
        }
    }

    fn text_or_action(&mut self) -> Result<Item, Mistake> {
        let token = self.take_word()?;
        match token.kind {
            Kind::Text => Ok(Item::Node(Node::Text(token.text.into()))),
            Kind::LeftDelimiter => self.action(token.at),
            _ => self.unexpected(&token, "the text"),
        }
    }

    fn action(&mut self, at: Position) -> Result<Item, Mistake> {
        let token = self.peek_word()?;
        if token.kind != Kind::Keyword || token.text == "nil" {
            let pipe = self.pipeline("an action", Kind::RightDelimiter)?;
            return Ok(Item::Node(Node::Action(pipe)));
        }
        self.next += 1;
        let node = match token.text {
            "if" => Node::If(self.branch(at, "if")?),
            "with" => Node::With(self.branch(at, "with")?),
            "range" => Node::Range(self.branch(at, "range")?),
            "end" => {
                self.expect(Kind::RightDelimiter, "{{end}}")?;
                return Ok(Item::End);
            }
            "else" => {
                let token = self.peek_word()?;
                return match (token.kind, token.text) {
                    (Kind::Keyword, "if") => Ok(Item::Else("if")),
                    (Kind::Keyword, "with") => Ok(Item::Else("with")),
                    _ => {
                        self.expect(Kind::RightDelimiter, "{{else}}")?;
                        Ok(Item::Else(""))
                    }
                };
            }
            word @ ("break" | "continue") => {
                self.expect(Kind::RightDelimiter, &format!("{{{{{word}}}}}"))?;
                if self.ranges == 0 {
                    return fault(at, format!("{{{{{word}}}}} outside {{{{range}}}}"));
                }
                if word == "break" { Node::Break } else { Node::Continue }
            }
            "template" => {
                const CONTEXT: &str = "{{template}}, which takes a name in quotes";
                let name = self.take_word()?;
                let name = self.template_name(&name, CONTEXT)?;
                let pipe = if self.peek_word()?.kind == Kind::RightDelimiter {
                    self.next += 1;
                    None
                } else {
                    Some(self.pipeline("{{template}}", Kind::RightDelimiter)?)
                };
                Node::Template { at, name, pipe }
            }
            "block" => {
                let name = self.take_word()?;
                let name = self.template_name(&name, "{{block}}, which takes a name in quotes")?;
                let pipe = self.pipeline("{{block}}", Kind::RightDelimiter)?;
                let list = self.separate_list(at, "block")?;
                self.add(name.clone(), list, at)?;
                Node::Template { at, name, pipe: Some(pipe) }
            }
            _ => return self.unexpected(&token, "this place; {{define}} stands outside of all blocks"),
        };
        Ok(Item::Node(node))
    }

    fn template_name(&self, token: &Token<'_>, context: &str) -> Result<String, Mistake> {
        match token.kind {
            Kind::String | Kind::RawString => self.text(token),
            _ => self.unexpected(token, context),
        }
    }

    fn text(&self, token: &Token<'_>) -> Result<String, Mistake> {
        literal::unquote(token.text).map_err(|reason| Mistake { at: token.at, reason })
    }

    fn branch(&mut self, at: Position, what: &'static str) -> Result<Branch, Mistake> {
        let scope = self.variables.len();
        let pipe = self.pipeline(&format!("{{{{{what}}}}}"), Kind::RightDelimiter)?;
        self.ranges += usize::from(what == "range");
        let (list, end) = self.list(at, what)?;
        self.ranges -= usize::from(what == "range");
        let otherwise = match end {
            Item::Else(next) if !next.is_empty() && next == what => {
                let at = self.at();
                self.next += 1;
                self.deeper(at)?;
                let chained = self.branch(at, what)?;
                self.depth -= 1;
                Some(vec![if what == "if" { Node::If(chained) } else { Node::With(chained) }])
            }
            Item::Else(next) => {
                let at = self.at();
                if !next.is_empty() {
                    // Go reads on and stumbles over the keyword.
                    return fault(at, format!("{{{{else {next}}}}} does not go on a {{{{{what}}}}}"));
                }
                let (list, end) = self.list(at, "else")?;
                if !matches!(end, Item::End) {
                    return fault(at, "a second {{else}}");
                }
                Some(list)
            }
            _ => None,
        };
        self.variables.truncate(scope);
        Ok(Branch { pipe, list, otherwise })
    }

    fn pipeline(&mut self, context: &str, end: Kind) -> Result<Pipe, Mistake> {
        let at = self.peek_word()?.at;
        let mut pipe = Pipe { at, variables: Vec::new(), assigns: false, commands: Vec::new() };
        while self.peek_word()?.kind == Kind::Variable {
            let before = self.next;
            let variable = self.take()?;
            let next = self.peek_word()?;
            match next.kind {
                Kind::Assign | Kind::Declare => {
                    self.next += 1;
                    pipe.assigns = next.kind == Kind::Assign;
                    pipe.variables.push(variable.text.into());
                    self.variables.push(variable.text.into());
                    break;
                }
                Kind::Char if next.text == "," => {
                    self.next += 1;
                    pipe.variables.push(variable.text.into());
                    self.variables.push(variable.text.into());
                    if context != "{{range}}" || pipe.variables.len() > 1 {
                        return fault(next.at, format!("too many variables for {context}"));
                    }
                    let then = self.peek_word()?;
                    if !matches!(then.kind, Kind::Variable | Kind::RightDelimiter | Kind::RightParen) {
                        return fault(then.at, "{{range}} declares variables only");
                    }
                }
                _ => {
                    self.next = before;
                    break;
                }
            }
        }
        loop {
            let token = self.peek_word()?;
            match token.kind {
                kind if kind == end => {
                    self.next += 1;
                    break;
                }
                Kind::Bool
                | Kind::CharConstant
                | Kind::Complex
                | Kind::Dot
                | Kind::Field
                | Kind::Identifier
                | Kind::Number
                | Kind::RawString
                | Kind::String
                | Kind::Variable
                | Kind::LeftParen => pipe.commands.push(self.command()?),
                Kind::Keyword if token.text == "nil" => pipe.commands.push(self.command()?),
                _ => return self.unexpected(&token, context),
            }
        }
        if pipe.commands.is_empty() {
            return fault(at, format!("{context} has no value"));
        }
        for command in &pipe.commands[1..] {
            let first = &command.operands[0];
            if matches!(first.term, Term::Bool(_) | Term::Dot | Term::Nil | Term::Number(_) | Term::Text(_)) {
                return fault(first.at, "what stands behind a | must be a function or a field");
            }
        }
        Ok(pipe)
    }

    fn command(&mut self) -> Result<Command, Mistake> {
        let at = self.peek_word()?.at;
        let mut operands = Vec::new();
        loop {
            self.skip_space();
            operands.extend(self.operand()?);
            let token = self.take()?;
            match token.kind {
                Kind::Space => {}
                Kind::RightDelimiter | Kind::RightParen => {
                    self.next -= 1;
                    break;
                }
                Kind::Pipe => break,
                _ => return self.unexpected(&token, "an operand; a space may be missing before it"),
            }
        }
        if operands.is_empty() {
            return fault(at, "a command with nothing in it");
        }
        Ok(Command { operands })
    }

    /// A term and the fields behind it.
    fn operand(&mut self) -> Result<Option<Operand>, Mistake> {
        let Some(mut operand) = self.term()? else { return Ok(None) };
        let mut fields = Vec::new();
        let at = self.at();
        while self.words.get(self.next).is_some_and(|token| token.kind == Kind::Field) {
            fields.push(self.take()?.text[1..].to_string());
        }
        if fields.is_empty() {
            return Ok(Some(operand));
        }
        match &mut operand.term {
            Term::Field(names) | Term::Variable(_, names) => names.append(&mut fields),
            Term::Bool(_) | Term::Text(_) | Term::Number(_) | Term::Nil | Term::Dot => {
                return fault(at, "a field of a literal");
            }
            _ => {
                let at = operand.at;
                operand = Operand { at, term: Term::Chain(Box::new(operand), fields) };
            }
        }
        Ok(Some(operand))
    }

    fn term(&mut self) -> Result<Option<Operand>, Mistake> {
        let token = self.peek_word()?;
        let at = token.at;
        let literal = |result: Result<_, String>| result.map_err(|reason| Mistake { at, reason });
        let term = match token.kind {
            Kind::Identifier => {
                if !(self.is_function)(token.text) {
                    return fault(at, format!("there is no function {}", token.text));
                }
                Term::Function(token.text.into())
            }
            Kind::Dot => Term::Dot,
            Kind::Keyword if token.text == "nil" => Term::Nil,
            Kind::Variable => {
                if !self.variables.iter().any(|name| name == token.text) {
                    return fault(at, format!("the variable {} is not declared here", token.text));
                }
                Term::Variable(token.text.into(), Vec::new())
            }
            Kind::Field => Term::Field(vec![token.text[1..].into()]),
            Kind::Bool => Term::Bool(token.text == "true"),
            Kind::CharConstant => Term::Number(literal(literal::character(token.text))?),
            Kind::Complex => Term::Number(literal(literal::complex(token.text))?),
            Kind::Number => Term::Number(literal(literal::number(token.text))?),
            Kind::String | Kind::RawString => Term::Text(self.text(&token)?),
            Kind::LeftParen => {
                self.next += 1;
                self.deeper(at)?;
                let pipe = self.pipeline("parentheses", Kind::RightParen)?;
                self.depth -= 1;
                return Ok(Some(Operand { at, term: Term::Pipe(pipe) }));
            }
            _ => return Ok(None),
        };
        self.next += 1;
        Ok(Some(Operand { at, term }))
    }
}
