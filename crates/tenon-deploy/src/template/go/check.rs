//! What can be told of a template before it runs: fields that there are not,
//! functions with the wrong number of arguments, templates that are not defined.
//!
//! Every action is looked at once for each shape that its dot can have. What
//! cannot be told has the shape [`Shape::Any`], and anything goes.

use std::collections::{BTreeMap, BTreeSet};

use super::execute::takes;
use super::function;
use super::lexer::Mistake;
use super::shape::{PROPERTY, Shape, VARIABLES};
use super::tree::{Branch, Command, List, Node, Number, Operand, Pipe, Position, Term, Trees};
use crate::template::prompt::nearest;

/// All mistakes, in the order of the text.
pub(crate) fn check(trees: &Trees) -> Vec<Mistake> {
    let mut checker =
        Checker { trees, mistakes: BTreeMap::new(), assigned: BTreeSet::new(), called: Vec::new() };
    for list in trees.values() {
        checker.find_assigned(list);
    }
    checker.template(&trees[""], Shape::Variables);
    // What nobody calls must still be right.
    for (name, list) in trees {
        if !name.is_empty() && !checker.called.iter().any(|(called, _)| called == name) {
            checker.template(list, Shape::Any);
        }
    }
    checker.mistakes.into_iter().map(|(at, reason)| Mistake { at, reason }).collect()
}

struct Checker<'t> {
    trees: &'t Trees,
    mistakes: BTreeMap<Position, String>,
    /// Variables that get values with `=`, whose shape changes.
    assigned: BTreeSet<String>,
    called: Vec<(String, Shape)>,
}

type Scope = Vec<(String, Shape)>;

impl Checker<'_> {
    fn mistake(&mut self, at: Position, reason: String) {
        self.mistakes.entry(at).or_insert(reason);
    }

    fn find_assigned(&mut self, list: &List) {
        for node in list {
            match node {
                Node::Action(pipe) | Node::Template { pipe: Some(pipe), .. } => self.note_assigned(pipe),
                Node::If(branch) | Node::With(branch) | Node::Range(branch) => {
                    self.note_assigned(&branch.pipe);
                    self.find_assigned(&branch.list);
                    branch.otherwise.iter().for_each(|list| self.find_assigned(list));
                }
                _ => {}
            }
        }
    }

    fn note_assigned(&mut self, pipe: &Pipe) {
        if pipe.assigns {
            self.assigned.extend(pipe.variables.iter().cloned());
        }
    }

    fn template(&mut self, list: &List, dot: Shape) {
        self.list(list, dot, &mut vec![("$".into(), dot)]);
    }

    fn list(&mut self, list: &List, dot: Shape, scope: &mut Scope) {
        for node in list {
            match node {
                Node::Text(_) | Node::Break | Node::Continue => {}
                Node::Action(pipe) => {
                    self.pipe(pipe, dot, scope);
                }
                Node::If(branch) => self.branch(branch, dot, scope, |_| dot),
                Node::With(branch) => self.branch(branch, dot, scope, |shape| shape),
                Node::Range(branch) => self.range(branch, dot, scope),
                Node::Template { at, name, pipe } => {
                    let dot = pipe.as_ref().map_or(Shape::Any, |pipe| self.pipe(pipe, dot, scope));
                    let trees = self.trees;
                    let Some(list) = trees.get(name) else {
                        let near = nearest(name, trees.keys().map(String::as_str));
                        self.mistake(*at, format!("there is no template {name:?}{near}"));
                        continue;
                    };
                    let call = (name.clone(), dot);
                    if !self.called.contains(&call) {
                        self.called.push(call);
                        self.template(list, dot);
                    }
                }
            }
        }
    }

    fn branch(&mut self, branch: &Branch, dot: Shape, scope: &mut Scope, inner: impl Fn(Shape) -> Shape) {
        let depth = scope.len();
        let shape = self.pipe(&branch.pipe, dot, scope);
        self.list(&branch.list, inner(shape), scope);
        if let Some(list) = &branch.otherwise {
            self.list(list, dot, scope);
        }
        scope.truncate(depth);
    }

    fn range(&mut self, branch: &Branch, dot: Shape, scope: &mut Scope) {
        let depth = scope.len();
        let shape = self.pipe(&branch.pipe, dot, scope);
        let two = branch.pipe.variables.len() > 1;
        let (key, item) = match shape {
            Shape::List(item) => (Shape::Int, *item),
            Shape::Map(item) => (Shape::Text, *item),
            Shape::Int if !two => (Shape::Any, Shape::Int),
            Shape::Any | Shape::Variables | Shape::OrderedMap => (Shape::Any, Shape::Any),
            other => {
                let what = name(other);
                self.mistake(branch.pipe.at, format!("{what} cannot be ranged over"));
                (Shape::Any, Shape::Any)
            }
        };
        let first = scope.len() - branch.pipe.variables.len().min(scope.len());
        if !branch.pipe.assigns {
            let shapes = if two { vec![key, item] } else { vec![item] };
            for ((_, slot), shape) in scope[first..].iter_mut().zip(shapes) {
                *slot = shape;
            }
        }
        self.list(&branch.list, item, scope);
        if let Some(list) = &branch.otherwise {
            self.list(list, dot, scope);
        }
        scope.truncate(depth);
    }

    fn pipe(&mut self, pipe: &Pipe, dot: Shape, scope: &mut Scope) -> Shape {
        let mut shape = None;
        for command in &pipe.commands {
            shape = Some(self.command(command, dot, scope, shape));
        }
        let shape = shape.unwrap_or(Shape::Any);
        for variable in &pipe.variables {
            if !pipe.assigns {
                let changes = self.assigned.contains(variable);
                scope.push((variable.clone(), if changes { Shape::Any } else { shape }));
            } else if !scope.iter().any(|(known, _)| known == variable) {
                let reason = format!("{variable} gets a value with = before it is declared with :=");
                self.mistake(pipe.at, reason);
            }
        }
        shape
    }

    fn command(&mut self, command: &Command, dot: Shape, scope: &mut Scope, last: Option<Shape>) -> Shape {
        let first = &command.operands[0];
        let arguments = &command.operands[1..];
        if let Term::Function(name) = &first.term {
            return self.call(first.at, name, arguments, dot, scope, last);
        }
        if matches!(first.term, Term::Nil) {
            self.mistake(first.at, "nil alone is no value".into());
        }
        if !arguments.is_empty() || last.is_some() {
            self.mistake(first.at, "arguments behind something that is no function".into());
        }
        self.operand(first, dot, scope)
    }

    fn call(
        &mut self,
        at: Position,
        name: &str,
        arguments: &[Operand],
        dot: Shape,
        scope: &mut Scope,
        last: Option<Shape>,
    ) -> Shape {
        let mut shapes: Vec<Shape> =
            arguments.iter().map(|operand| self.operand(operand, dot, scope)).collect();
        shapes.extend(last);
        let (least, most) = function::arity(name);
        if shapes.len() < least || shapes.len() > most {
            let got = shapes.len();
            self.mistake(at, format!("{name} got {got} arguments; it takes {}", takes(least, most)));
            return Shape::Any;
        }
        match name {
            "call" => {
                self.mistake(at, "call: nothing that a template gets can be called".into());
                Shape::Any
            }
            "slice" if matches!(shapes[0], Shape::List(_) | Shape::Text) => shapes[0],
            "index" if shapes.len() == 2 => match shapes[0] {
                Shape::List(item) | Shape::Map(item) => *item,
                _ => Shape::Any,
            },
            // The value of either is one of the arguments.
            "and" | "or" if shapes.iter().all(|shape| *shape == shapes[0]) => shapes[0],
            name => function::shape(name),
        }
    }

    fn operand(&mut self, operand: &Operand, dot: Shape, scope: &mut Scope) -> Shape {
        let at = operand.at;
        match &operand.term {
            Term::Dot => dot,
            Term::Nil => Shape::Any,
            Term::Bool(_) => Shape::Bool,
            Term::Text(_) => Shape::Text,
            Term::Number(Number::Int(_)) => Shape::Int,
            Term::Number(Number::TooLarge) => {
                self.mistake(at, "the number is too large for an integer".into());
                Shape::Any
            }
            Term::Number(_) => Shape::Any,
            Term::Field(names) => self.fields(at, dot, names),
            Term::Variable(name, names) => {
                let shape = scope.iter().rev().find(|(known, _)| known == name).map(|(_, shape)| *shape);
                self.fields(at, shape.unwrap_or(Shape::Any), names)
            }
            Term::Function(name) => self.call(at, name, &[], dot, scope, None),
            Term::Pipe(pipe) => self.pipe(pipe, dot, scope),
            Term::Chain(operand, names) => {
                let shape = self.operand(operand, dot, scope);
                self.fields(at, shape, names)
            }
        }
    }

    fn fields(&mut self, at: Position, mut shape: Shape, names: &[String]) -> Shape {
        for field in names {
            shape = match shape {
                Shape::Any => Shape::Any,
                Shape::Variables => match VARIABLES.iter().find(|(known, _)| known == field) {
                    Some((_, shape)) => *shape,
                    None => {
                        let near = nearest(field, VARIABLES.iter().map(|(known, _)| *known));
                        self.mistake(at, format!("Ollama gives templates no variable .{field}{near}"));
                        Shape::Any
                    }
                },
                Shape::Record(record) if record.name == PROPERTY.name && field == "ToTypeScriptType" => {
                    Shape::Text
                }
                Shape::Record(record) if record.prints_json && field == "String" => Shape::Text,
                Shape::Record(record) => match record.position(field) {
                    Some(position) => record.fields[position].shape,
                    None => {
                        let near = nearest(field, record.fields.iter().map(|field| field.name));
                        let root = VARIABLES.iter().any(|(known, _)| known == field);
                        let root = if root { format!("; the variable is ${}{field}", '.') } else { near };
                        self.mistake(at, format!("a {} has no .{field}{root}", record.name));
                        Shape::Any
                    }
                },
                Shape::Map(item) if field != "String" => *item,
                Shape::Map(_) | Shape::List(_) if field == "String" => Shape::Text,
                Shape::OrderedMap => Shape::Any,
                other => {
                    self.mistake(at, format!("{} has no .{field}", name(other)));
                    Shape::Any
                }
            };
        }
        shape
    }
}

fn name(shape: Shape) -> String {
    match shape {
        Shape::Any => "this".into(),
        Shape::Text => "a string".into(),
        Shape::Int => "an integer".into(),
        Shape::Bool => "a bool".into(),
        Shape::Variables => "the variables".into(),
        Shape::Record(record) => format!("a {}", record.name),
        Shape::List(_) => "a list".into(),
        Shape::Map(_) | Shape::OrderedMap => "a map".into(),
    }
}
