//! A Go template as Ollama uses it: which variables it has, how messages reach
//! it, and what it makes of templates from before there were messages.

use std::collections::BTreeSet;

use super::conversation::{Conversation, Message, tool};
use super::fault::Fault;
use super::go::execute::{Setting, execute};
use super::go::shape::Shape;
use super::go::tree::{Branch, Command, List, Node, Operand, Pipe, Term, Trees};
use super::go::value::{ListPrints, Map, Value};
use super::go::{Mistake, check, function, parse};

/// A template that Ollama takes.
#[derive(Debug, Clone)]
pub struct PromptTemplate {
    text: String,
    trees: Trees,
    /// Every field that is named anywhere, in lower case.
    names: BTreeSet<String>,
}

/// Makes a template's variables of those of a turn and those of the whole conversation.
type Variables<'v> = dyn Fn(Vec<(&str, Value)>) -> Value + 'v;

impl PromptTemplate {
    /// Parses a template with the functions that Ollama has, and finds what Ollama would refuse.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        Self::parse_here(text).map_err(|mistake| Fault::at(text, mistake.at, mistake.reason))
    }

    fn parse_here(text: &str) -> Result<Self, Mistake> {
        let known = |name: &str| function::GO.contains(&name) || function::OLLAMA.contains(&name);
        let mut trees = parse(text, &known).map_err(|mut mistake| {
            if let Some(name) = mistake.reason.strip_prefix("there is no function ") {
                let names = function::GO.iter().chain(&function::OLLAMA);
                mistake.reason = format!("there is no function {name}{}", nearest(name, names.copied()));
            }
            mistake
        })?;
        let mut names = BTreeSet::new();
        trees.values().try_for_each(|list| collect_names(list, &mut names))?;
        if !names.contains("messages") && !names.contains("response") {
            let response = Term::Field(vec!["Response".into()]);
            let command = Command { operands: vec![Operand { at: text.len(), term: response }] };
            let pipe =
                Pipe { at: text.len(), variables: Vec::new(), assigns: false, commands: vec![command] };
            trees.entry(String::new()).or_default().push(Node::Action(pipe));
        }
        Ok(Self { text: text.into(), trees, names })
    }

    /// The template as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it gets the messages; one that does not is rendered once for every turn.
    pub fn has_messages(&self) -> bool {
        self.names.contains("messages")
    }

    /// Whether a field of this name, in lower case, is used anywhere.
    pub(crate) fn names(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Variables and fields that there are not, functions with too many arguments: what parses, and
    /// would give nothing or fail when it is used.
    pub fn check(&self) -> Vec<Fault> {
        let mistakes = check::check(&self.trees);
        mistakes.into_iter().map(|mistake| Fault::at(&self.text, mistake.at, mistake.reason)).collect()
    }

    /// The prompt for a conversation, byte for byte what Ollama gives to the model.
    ///
    /// # Errors
    /// What makes Ollama fail, with its place; also templates that write or run without end.
    pub fn render(&self, conversation: &Conversation) -> Result<String, Fault> {
        self.render_at(conversation, unix_time())
    }

    /// The same at a moment in seconds of Unix time.
    pub fn render_at(&self, conversation: &Conversation, now: i64) -> Result<String, Fault> {
        self.render_here(conversation, now)
            .map_err(|mistake| Fault::at(&self.text, mistake.at, mistake.reason))
    }

    fn render_here(&self, conversation: &Conversation, now: i64) -> Result<String, Mistake> {
        let setting = Setting { trees: &self.trees, with_ollama_functions: true, missing_is_zero: true, now };
        let root = &self.trees[""];
        let thinking = [
            ("Think", Value::Bool(conversation.think.unwrap_or(false))),
            ("ThinkLevel", Value::from(conversation.think_level.as_str())),
            ("IsThinkSet", Value::Bool(conversation.think.is_some())),
        ];
        let variables = |own: Vec<(&str, Value)>| {
            let entries = own.into_iter().chain(thinking.clone());
            Value::Map(Map {
                entries: entries
                    .map(|(name, value)| (name.to_string(), value))
                    .collect::<std::collections::BTreeMap<_, _>>()
                    .into(),
                prints_json: false,
                nil: false,
                element: Shape::Any,
            })
        };
        if !conversation.prompt.is_empty() && !conversation.suffix.is_empty() {
            let data = variables(vec![
                ("Prompt", Value::from(conversation.prompt.as_str())),
                ("Suffix", Value::from(conversation.suffix.as_str())),
                ("Response", Value::from("")),
            ]);
            return execute(root, data, setting);
        }
        let (system, messages) = conversation.collated();
        if self.has_messages() {
            let tools = conversation.tools.iter().map(tool).collect();
            let data = variables(vec![
                ("System", system.into()),
                (
                    "Messages",
                    Value::list_or_nil(messages.iter().map(Message::value).collect(), ListPrints::Addresses),
                ),
                ("Tools", Value::list_or_nil(tools, ListPrints::Json)),
                ("Response", Value::from("")),
            ]);
            return execute(root, data, setting);
        }
        self.render_turns(&messages, &variables, setting)
    }

    /// Turn by turn; the last is cut behind its `.Response`, where the model goes on.
    fn render_turns(
        &self,
        messages: &[Message],
        variables: &Variables<'_>,
        setting: Setting<'_>,
    ) -> Result<String, Mistake> {
        let root = &self.trees[""];
        let mut out = String::new();
        let (mut system, mut prompt, mut response) = (String::new(), String::new(), String::new());
        let data = |system: &str, prompt: &str, response: &str| {
            variables(vec![
                ("System", Value::from(system)),
                ("Prompt", Value::from(prompt)),
                ("Response", Value::from(response)),
            ])
        };
        for message in messages {
            let turn_is_over = match message.role.as_str() {
                "system" => !prompt.is_empty() || !response.is_empty(),
                "user" => !response.is_empty(),
                _ => false,
            };
            if turn_is_over {
                out.push_str(&execute(root, data(&system, &prompt, &response), setting)?);
                (system, prompt, response) = Default::default();
            }
            match message.role.as_str() {
                "system" => system = message.content.clone(),
                "user" => prompt = message.content.clone(),
                "assistant" => response = message.content.clone(),
                _ => {}
            }
        }
        let cut = Cut::default().list(root).map_err(|()| Mistake {
            at: 0,
            reason: "Ollama breaks down on a template whose .Response stands in a block with an {{else}}, \
                     where it cuts it for the last turn; write .Response outside of that block"
                .into(),
        })?;
        // What Ollama executes here is a copy without the functions and templates of the whole.
        let alone = Trees::new();
        let setting =
            Setting { trees: &alone, with_ollama_functions: false, missing_is_zero: false, ..setting };
        out.push_str(&execute(&cut, data(&system, &prompt, &response), setting)?);
        Ok(out)
    }
}

/// Seconds of Unix time.
fn unix_time() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_secs() as i64)
}

/// " (did you mean …?)" where a name is near enough.
pub(crate) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    let scored = known.filter(|known| !known.is_empty()).map(|known| {
        let distance = strsim::osa_distance(&name.to_lowercase(), &known.to_lowercase());
        // Letters are forgotten more often than added.
        (distance, std::cmp::Reverse(known.len()), known)
    });
    match scored.min() {
        Some((distance, _, known)) if distance * 3 <= name.chars().count().max(3) => {
            format!(" (did you mean {known}?)")
        }
        _ => String::new(),
    }
}

fn collect_names(list: &List, names: &mut BTreeSet<String>) -> Result<(), Mistake> {
    let of_branch = |branch: &Branch, names: &mut BTreeSet<String>| {
        names_of_pipe(&branch.pipe, names);
        collect_names(&branch.list, names)?;
        branch.otherwise.iter().try_for_each(|list| collect_names(list, names))
    };
    for node in list {
        match node {
            Node::Text(_) | Node::Break | Node::Continue => {}
            Node::Action(pipe) => names_of_pipe(pipe, names),
            Node::If(branch) | Node::With(branch) | Node::Range(branch) => of_branch(branch, names)?,
            Node::Template { at, name, pipe } => match pipe {
                Some(pipe) => names_of_pipe(pipe, names),
                None => {
                    let reason =
                        format!("Ollama takes {{{{template {name:?}}}}} with a value only: add a dot");
                    return Err(Mistake { at: *at, reason });
                }
            },
        }
    }
    Ok(())
}

/// Chains are not looked into, as Ollama does not.
fn names_of_pipe(pipe: &Pipe, names: &mut BTreeSet<String>) {
    for operand in pipe.commands.iter().flat_map(|command| &command.operands) {
        match &operand.term {
            Term::Field(fields) => names.extend(fields.iter().map(|name| name.to_lowercase())),
            Term::Variable(name, fields) => {
                names.insert(name.to_lowercase());
                names.extend(fields.iter().map(|name| name.to_lowercase()));
            }
            Term::Pipe(pipe) => names_of_pipe(pipe, names),
            _ => {}
        }
    }
}

/// Drops everything behind the first `.Response`, in the order in which Ollama walks the tree.
#[derive(Default)]
struct Cut {
    found: bool,
}

impl Cut {
    fn list(&mut self, list: &List) -> Result<List, ()> {
        let mut kept = List::new();
        for node in list {
            if self.found {
                break;
            }
            kept.push(match node {
                Node::If(branch) => Node::If(self.branch(branch)?),
                Node::With(branch) => Node::With(self.branch(branch)?),
                Node::Range(branch) => Node::Range(self.branch(branch)?),
                Node::Action(pipe) => match self.pipe(pipe) {
                    Some(pipe) => Node::Action(pipe),
                    None => continue,
                },
                other => other.clone(),
            });
        }
        Ok(kept)
    }

    fn branch(&mut self, branch: &Branch) -> Result<Branch, ()> {
        let list = self.list(&branch.list)?;
        let otherwise = match &branch.otherwise {
            Some(_) if self.found => return Err(()),
            Some(list) => Some(self.list(list)?),
            None => None,
        };
        Ok(Branch { pipe: branch.pipe.clone(), list, otherwise })
    }

    fn pipe(&mut self, pipe: &Pipe) -> Option<Pipe> {
        let mut commands = Vec::new();
        for command in &pipe.commands {
            let mut operands = Vec::new();
            for operand in &command.operands {
                if let Term::Field(names) = &operand.term
                    && names.iter().any(|name| name == "Response")
                {
                    self.found = true;
                } else if self.found {
                    continue;
                } else if let Term::Pipe(inner) = &operand.term {
                    let term = Term::Pipe(self.pipe(inner)?);
                    operands.push(Operand { at: operand.at, term });
                    continue;
                }
                operands.push(operand.clone());
            }
            if operands.is_empty() {
                return None;
            }
            commands.push(Command { operands });
        }
        Some(Pipe { commands, ..pipe.clone() })
    }
}
