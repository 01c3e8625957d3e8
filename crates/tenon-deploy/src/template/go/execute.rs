//! Rendering: what Go's `text/template` writes for a tree and a value.

use std::rc::Rc;

use super::function;
use super::lexer::Mistake;
use super::shape::{PROPERTY, Shape};
use super::tree::{Branch, Command, List, Node, Number, Operand, Pipe, Position, Term, Trees};
use super::value::{Map, Unprintable, Value};

/// Text that a template may write, in bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// Actions that it may take.
const MAX_STEPS: usize = 2_000_000;
/// Templates that call each other.
const MAX_DEPTH: usize = 100;

/// What surrounds an execution.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'t> {
    /// The templates that can be called.
    pub(crate) trees: &'t Trees,
    /// Whether Ollama's functions are there.
    pub(crate) with_ollama_functions: bool,
    /// Whether a missing key of a map gives the zero of its elements, or no value at all.
    pub(crate) missing_is_zero: bool,
    /// The moment that `currentDate` tells, in seconds of Unix time.
    pub(crate) now: i64,
}

/// Writes a template's list for a value.
pub(crate) fn execute(list: &List, data: Value, setting: Setting<'_>) -> Result<String, Mistake> {
    let mut state = State {
        setting,
        out: String::new(),
        variables: vec![("$".into(), data.clone())],
        steps: 0,
        depth: 0,
    };
    match state.list(&data, list) {
        // Outside of a range there is nothing to leave; the parser saw to that.
        Ok(()) | Err(Stop::Break | Stop::Continue) => Ok(state.out),
        Err(Stop::Fault(mistake)) => Err(mistake),
    }
}

enum Stop {
    Break,
    Continue,
    Fault(Mistake),
}

fn fault<T>(at: Position, reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fault(Mistake { at, reason: reason.into() }))
}

struct State<'t> {
    setting: Setting<'t>,
    out: String,
    variables: Vec<(String, Value)>,
    steps: usize,
    depth: usize,
}

impl State<'_> {
    fn list(&mut self, dot: &Value, list: &List) -> Result<(), Stop> {
        list.iter().try_for_each(|node| self.node(dot, node))
    }

    fn write(&mut self, at: Position, text: &str) -> Result<(), Stop> {
        if self.out.len() + text.len() > MAX_OUTPUT {
            return fault(at, format!("the template writes more than {} MiB", MAX_OUTPUT >> 20));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn step(&mut self, at: Position) -> Result<(), Stop> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return fault(at, format!("the template takes more than {MAX_STEPS} steps"));
        }
        Ok(())
    }

    fn node(&mut self, dot: &Value, node: &Node) -> Result<(), Stop> {
        match node {
            Node::Text(text) => self.write(0, text),
            Node::Action(pipe) => {
                let value = self.pipe(dot, pipe)?;
                if pipe.variables.is_empty() {
                    let text = printed(pipe.at, value.print())?;
                    self.write(pipe.at, &text)?;
                }
                Ok(())
            }
            Node::If(branch) => self.if_or_with(dot, branch, false),
            Node::With(branch) => self.if_or_with(dot, branch, true),
            Node::Range(branch) => {
                let scope = self.variables.len();
                let result = self.range(dot, branch);
                self.variables.truncate(scope);
                match result {
                    Err(Stop::Break) => Ok(()),
                    other => other,
                }
            }
            Node::Template { at, name, pipe } => {
                let trees = self.setting.trees;
                let Some(list) = trees.get(name) else {
                    return fault(*at, format!("there is no template {name:?}"));
                };
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return fault(*at, format!("templates call each other more than {MAX_DEPTH} deep"));
                }
                let dot = match pipe {
                    Some(pipe) => self.pipe(dot, pipe)?,
                    None => Value::Absent,
                };
                let variables = std::mem::replace(&mut self.variables, vec![("$".into(), dot.clone())]);
                self.list(&dot, list)?;
                self.variables = variables;
                self.depth -= 1;
                Ok(())
            }
            Node::Break => Err(Stop::Break),
            Node::Continue => Err(Stop::Continue),
        }
    }

    fn if_or_with(&mut self, dot: &Value, branch: &Branch, with: bool) -> Result<(), Stop> {
        let scope = self.variables.len();
        let value = self.pipe(dot, &branch.pipe)?;
        if value.truth() {
            self.list(if with { &value } else { dot }, &branch.list)?;
        } else if let Some(list) = &branch.otherwise {
            self.list(dot, list)?;
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn range(&mut self, dot: &Value, branch: &Branch) -> Result<(), Stop> {
        let at = branch.pipe.at;
        let value = self.pipe(dot, &branch.pipe)?;
        let two = branch.pipe.variables.len() > 1;
        let mut any = false;
        match &value {
            Value::Absent | Value::Nil => {}
            Value::Int(_) | Value::Byte(_) => {
                let count = match value {
                    Value::Int(count) => count,
                    Value::Byte(count) => i64::from(count),
                    _ => 0,
                };
                if two {
                    return fault(at, "a number is ranged over with one variable");
                }
                for n in 0..count.max(0) {
                    any = true;
                    self.iteration(branch, Value::Absent, Value::Int(n))?;
                }
            }
            Value::List(list) => {
                for (i, item) in list.items.iter().enumerate() {
                    any = true;
                    self.iteration(branch, Value::Int(i as i64), item.clone())?;
                }
            }
            Value::Map(map) => {
                for (key, item) in map.entries.iter() {
                    any = true;
                    self.iteration(branch, Value::from(key.as_str()), item.clone())?;
                }
            }
            other => return fault(at, format!("{} cannot be ranged over", other.kind())),
        }
        match &branch.otherwise {
            Some(list) if !any => self.list(dot, list),
            _ => Ok(()),
        }
    }

    fn iteration(&mut self, branch: &Branch, key: Value, item: Value) -> Result<(), Stop> {
        let pipe = &branch.pipe;
        self.step(pipe.at)?;
        let scope = self.variables.len();
        let values = match pipe.variables.len() {
            0 => Vec::new(),
            1 => vec![item.clone()],
            _ => vec![key, item.clone()],
        };
        if pipe.assigns {
            for (name, value) in pipe.variables.iter().zip(values) {
                self.assign(pipe.at, name, value)?;
            }
        } else {
            let first = scope - values.len();
            for (slot, value) in self.variables[first..].iter_mut().zip(values) {
                slot.1 = value;
            }
        }
        let result = self.list(&item, &branch.list);
        self.variables.truncate(scope);
        match result {
            Err(Stop::Continue) => Ok(()),
            other => other,
        }
    }

    fn assign(&mut self, at: Position, name: &str, value: Value) -> Result<(), Stop> {
        match self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some(slot) => slot.1 = value,
            None => return fault(at, format!("{name} gets a value with = before it is declared with :=")),
        }
        Ok(())
    }

    fn pipe(&mut self, dot: &Value, pipe: &Pipe) -> Result<Value, Stop> {
        let mut value = None;
        for command in &pipe.commands {
            value = Some(self.command(dot, command, value)?.looked_at());
        }
        let value = value.unwrap_or(Value::Absent);
        for name in &pipe.variables {
            if pipe.assigns {
                self.assign(pipe.at, name, value.clone())?;
            } else {
                self.variables.push((name.clone(), value.clone()));
            }
        }
        Ok(value)
    }

    /// `last` is the value of the command before: the last argument of this one.
    fn command(&mut self, dot: &Value, command: &Command, last: Option<Value>) -> Result<Value, Stop> {
        let first = &command.operands[0];
        let arguments = &command.operands[1..];
        self.step(first.at)?;
        let has_arguments = !arguments.is_empty() || last.is_some();
        match &first.term {
            Term::Function(name) => self.call(dot, first.at, name, arguments, last),
            Term::Nil => fault(first.at, "nil alone is no value"),
            Term::Field(names) => self.fields(first.at, dot.clone(), names, has_arguments),
            Term::Chain(_, names) => {
                let value = self.operand(dot, first)?;
                // Fields are taken already; only methods could have arguments, and those take none.
                if has_arguments {
                    return fault(first.at, format!(".{} takes no arguments", names.join(".")));
                }
                Ok(value)
            }
            Term::Variable(_, names) if !names.is_empty() && has_arguments => {
                fault(first.at, format!(".{} takes no arguments", names.join(".")))
            }
            _ if has_arguments => fault(first.at, "arguments behind something that is no function"),
            Term::Number(Number::TooLarge) => fault(first.at, "the number is too large for an integer"),
            _ => self.operand(dot, first),
        }
    }

    /// An operand's value where it is an argument.
    fn operand(&mut self, dot: &Value, operand: &Operand) -> Result<Value, Stop> {
        let at = operand.at;
        Ok(match &operand.term {
            Term::Dot => dot.clone(),
            Term::Nil => Value::Absent,
            Term::Bool(b) => Value::Bool(*b),
            Term::Text(text) => Value::from(text.as_str()),
            Term::Number(Number::Int(n)) => Value::Int(*n),
            Term::Number(Number::Float(n)) => Value::Float(*n),
            Term::Number(Number::Complex(re, im)) => Value::Complex(*re, *im),
            Term::Number(Number::TooLarge) => return fault(at, "the number is too large for an integer"),
            Term::Field(names) => self.fields(at, dot.clone(), names, false)?,
            Term::Variable(name, names) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let Some((_, value)) = known else {
                    return fault(at, format!("the variable {name} is not declared here"));
                };
                let value = value.clone();
                self.fields(at, value, names, false)?
            }
            Term::Function(name) => self.call(dot, at, name, &[], None)?,
            Term::Pipe(pipe) => self.pipe(dot, pipe)?,
            Term::Chain(operand, names) => {
                if matches!(operand.term, Term::Nil) {
                    return fault(at, "a field of nil");
                }
                let value = self.operand(dot, operand)?;
                self.fields(at, value, names, false)?
            }
        })
    }

    fn fields(
        &self,
        at: Position,
        mut value: Value,
        names: &[String],
        has_arguments: bool,
    ) -> Result<Value, Stop> {
        for (i, name) in names.iter().enumerate() {
            let arguments = has_arguments && i + 1 == names.len();
            value = self.field(at, &value, name)?;
            if arguments {
                return fault(at, format!(".{name} takes no arguments"));
            }
        }
        Ok(value)
    }

    /// A field, a map's element, or what a method without arguments gives.
    fn field(&self, at: Position, receiver: &Value, name: &str) -> Result<Value, Stop> {
        if name == "String" && receiver.has_string_method() {
            return Ok(printed(at, receiver.print())?.into());
        }
        match receiver {
            Value::Absent => Ok(Value::Absent),
            Value::Nil => fault(at, format!(".{name} of nothing")),
            Value::Record(record, _) if record.name == PROPERTY.name && name == "ToTypeScriptType" => {
                Ok(receiver.typescript().into())
            }
            Value::Record(record, values) => match record.position(name) {
                Some(position) => Ok(values[position].clone()),
                None => fault(at, format!("a {} has no .{name}", record.name)),
            },
            Value::Map(map) => Ok(match map.entries.get(name) {
                Some(value) => value.clone(),
                None if self.setting.missing_is_zero => Value::zero(map.element),
                None => Value::Absent,
            }),
            Value::Ordered(entries) if name == "Len" => {
                Ok(Value::Int(entries.as_ref().map_or(0, |entries| entries.len()) as i64))
            }
            Value::Ordered(entries) if name == "ToMap" => Ok(Value::Map(Map {
                entries: Rc::new(entries.iter().flat_map(|entries| entries.iter().cloned()).collect()),
                prints_json: false,
                nil: entries.is_none(),
                element: Shape::Record(&PROPERTY),
            })),
            other => fault(at, format!("{} has no .{name}", other.kind())),
        }
    }

    fn call(
        &mut self,
        dot: &Value,
        at: Position,
        name: &str,
        operands: &[Operand],
        last: Option<Value>,
    ) -> Result<Value, Stop> {
        if !self.setting.with_ollama_functions && function::OLLAMA.contains(&name) {
            return fault(at, format!("{name} is not known where Ollama cuts the template at .Response"));
        }
        let count = operands.len() + usize::from(last.is_some());
        let (least, most) = function::arity(name);
        if count < least || count > most {
            return fault(at, format!("{name} got {count} arguments; it takes {}", takes(least, most)));
        }
        if matches!(name, "and" | "or") {
            let mut value = Value::Absent;
            for operand in operands {
                value = self.operand(dot, operand)?;
                if value.truth() == (name == "or") {
                    return Ok(value);
                }
            }
            return Ok(last.unwrap_or(value));
        }
        let mut arguments = Vec::with_capacity(count);
        for (i, operand) in operands.iter().enumerate() {
            let value = self.operand(dot, operand)?;
            if function::wants_text(name, i) && !matches!(value, Value::Text(_)) {
                return fault(operand.at, format!("{name} takes a string here, not {}", value.kind()));
            }
            arguments.push(value);
        }
        if let Some(last) = last {
            if function::wants_text(name, arguments.len()) && !matches!(last, Value::Text(_)) {
                return fault(at, format!("{name} takes a string here, not {}", last.kind()));
            }
            arguments.push(last);
        }
        match function::call(name, &arguments, self.setting.now) {
            Ok(value) => Ok(value),
            Err(reason) => fault(at, format!("{name}: {reason}")),
        }
    }
}

fn printed(at: Position, result: Result<String, Unprintable>) -> Result<String, Stop> {
    result.or_else(|reason| fault(at, reason))
}

/// A range of counts in words.
pub(crate) fn takes(least: usize, most: usize) -> String {
    match (least, most) {
        (1, 1) => "1".into(),
        (least, usize::MAX) => format!("{least} or more"),
        (least, _) => least.to_string(),
    }
}
