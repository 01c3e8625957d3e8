//! What a parsed Go template is made of.

use std::collections::BTreeMap;

/// A place in the text, in bytes.
pub(crate) type Position = usize;

/// A sequence of text and actions.
pub(crate) type List = Vec<Node>;

/// All templates of a file by name; its own is the one without a name.
pub(crate) type Trees = BTreeMap<String, List>;

/// Text or an action.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Text(String),
    Action(Pipe),
    If(Branch),
    With(Branch),
    Range(Branch),
    Template { at: Position, name: String, pipe: Option<Pipe> },
    Break,
    Continue,
}

/// `if`, `with` and `range`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Branch {
    pub(crate) pipe: Pipe,
    pub(crate) list: List,
    pub(crate) otherwise: Option<List>,
}

/// Commands of which each gets the value of the one before, perhaps kept in variables.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pipe {
    pub(crate) at: Position,
    /// Variables that take the value, with their `$`.
    pub(crate) variables: Vec<String>,
    /// `=`, not `:=`.
    pub(crate) assigns: bool,
    pub(crate) commands: Vec<Command>,
}

/// A function, field or value, and arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Command {
    pub(crate) operands: Vec<Operand>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Operand {
    pub(crate) at: Position,
    pub(crate) term: Term,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Term {
    Dot,
    Nil,
    Bool(bool),
    Number(Number),
    Text(String),
    /// `.A.B`
    Field(Vec<String>),
    /// `$x.A.B`: the variable with its `$`, then fields.
    Variable(String, Vec<String>),
    Function(String),
    Pipe(Pipe),
    /// `(…).A.B`
    Chain(Box<Operand>, Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Int(i64),
    Float(f64),
    Complex(f64, f64),
    /// An unsigned number that no `int` holds: it parses, and fails where it is used.
    TooLarge,
}

/// Whether nothing but space is in it, which lets another definition take its place.
pub(crate) fn is_empty(list: &List) -> bool {
    list.iter().all(|node| match node {
        Node::Text(text) => text.trim().is_empty(),
        _ => false,
    })
}
