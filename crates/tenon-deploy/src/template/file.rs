//! A Deployment Template File: parsed, checked, and ready to be sent along.

use serde::Serialize;
use serde_json::{Map as JsonMap, Value as Json};

use super::conversation::{Conversation, Message};
use super::fault::Fault;
use super::modelfile::{Command, Name, commands, is_modelfile};
use super::parameter::{Parameter, is_version, parameter};
use super::prompt::{PromptTemplate, nearest};
use super::sample;
use crate::{Error, ModelSettings};

/// Renderers in the version of Ollama that this was written against (0.9.7's successors, August 2026).
const RENDERERS: [&str; 26] = [
    "qwen3-coder",
    "qwen3-vl-instruct",
    "qwen3-vl-thinking",
    "qwen3.5",
    "qwen3.8",
    "ornith",
    "cogito",
    "deepseek3.1",
    "olmo3",
    "olmo3.1",
    "olmo3-think",
    "olmo3-32b-think",
    "nemotron-3-nano",
    "nemotron-3.5-nano",
    "gemma4",
    "gemma4-small",
    "gemma4-large",
    "functiongemma",
    "glm-4.7",
    "glm-ocr",
    "lfm2",
    "lfm2-thinking",
    "laguna",
    "poolside-v1",
    "cohere",
    "glimmer",
];

/// Parsers in the same.
const PARSERS: [&str; 27] = [
    "qwen3",
    "qwen3-thinking",
    "qwen3.5",
    "ornith",
    "qwen3-coder",
    "qwen3-vl-instruct",
    "qwen3-vl-thinking",
    "ministral",
    "passthrough",
    "harmony",
    "cogito",
    "deepseek3",
    "olmo3",
    "olmo3-think",
    "nemotron-3-nano",
    "nemotron-3.5-nano",
    "functiongemma",
    "glm-4.7",
    "gemma4",
    "gemma4-no-thinking",
    "glm-ocr",
    "lfm2",
    "lfm2-thinking",
    "laguna",
    "poolside-v1",
    "cohere",
    "glimmer",
];

/// A Deployment Template File without mistakes.
#[derive(Debug, Clone, Serialize)]
pub struct DeploymentTemplate {
    /// The Go template; missing where a renderer of the server stands in for it.
    #[serde(serialize_with = "text_of")]
    pub template: Option<PromptTemplate>,
    /// The system's text for conversations that bring none.
    pub system: Option<String>,
    /// Parameters by name, in the types that Ollama has for them.
    pub parameters: JsonMap<String, Json>,
    /// Licence texts.
    pub licenses: Vec<String>,
    /// Messages before each conversation.
    pub messages: Vec<Message>,
    /// The server's own code in place of a template.
    pub renderer: Option<String>,
    /// The server's own code for what the model says.
    pub parser: Option<String>,
    /// The least version of the server.
    pub requires: Option<String>,
    /// What works and may surprise.
    pub warnings: Vec<Fault>,
}

fn text_of<S: serde::Serializer>(template: &Option<PromptTemplate>, to: S) -> Result<S::Ok, S::Error> {
    template.as_ref().map(PromptTemplate::text).serialize(to)
}

impl DeploymentTemplate {
    /// Parses and checks a file's text, a Go template or a Modelfile; `file` is its name in errors.
    ///
    /// # Errors
    /// All mistakes that were found, each with line and column.
    pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
        Self::read(text).map_err(|mut faults| {
            faults.sort_by_key(|fault| (fault.line, fault.column));
            Error::Template { file: file.into(), faults: faults.into() }
        })
    }

    fn read(text: &str) -> Result<Self, Vec<Fault>> {
        let mut read = Self {
            template: None,
            system: None,
            parameters: JsonMap::new(),
            licenses: Vec::new(),
            messages: Vec::new(),
            renderer: None,
            parser: None,
            requires: None,
            warnings: Vec::new(),
        };
        if !is_modelfile(text) {
            let text = text.strip_prefix('\u{feff}').unwrap_or(text);
            let template = PromptTemplate::parse(text).map_err(|fault| vec![fault])?;
            let (faults, warnings) = examine(&template);
            read.warnings = warnings;
            read.template = Some(template);
            return if faults.is_empty() { Ok(read) } else { Err(faults) };
        }
        let (commands, dropped) = commands(text).map_err(|fault| vec![fault])?;
        let mut faults = Vec::new();
        let mut template_at = None;
        for command in &commands {
            if let Err(reason) = read.take(command, text) {
                faults.extend(reason);
            }
            if command.name == Name::Template {
                template_at = Some(command);
            }
        }
        for dropped in dropped {
            let code = u32::from(dropped.character);
            let reason =
                format!("U+{code:04X} is left out, as Ollama does with characters that are not printable");
            read.warnings.push(Fault::at(text, dropped.at, reason));
        }
        if let (Some(template), Some(command)) = (&read.template, template_at) {
            let (mistakes, warnings) = examine(template);
            let moved = |fault: Fault| move_into(text, command, &template_text(template), fault);
            faults.extend(mistakes.into_iter().map(moved));
            read.warnings.extend(warnings.into_iter().map(moved));
        } else if template_at.is_none() && read.renderer.is_none() {
            faults.push(Fault::at(
                text,
                0,
                "neither TEMPLATE nor RENDERER is there; Ollama needs one of them to talk with the model",
            ));
        }
        if faults.is_empty() { Ok(read) } else { Err(faults) }
    }

    fn take(&mut self, command: &Command, text: &str) -> Result<(), Vec<Fault>> {
        let fault = |reason: String| Err(vec![Fault::at(text, command.at, reason)]);
        let value = command.value.clone();
        match &command.name {
            Name::From => fault(
                "FROM has no place here: the model is the Complete Model that is deployed; remove this line"
                    .into(),
            ),
            Name::Adapter => fault(
                "ADAPTER has no place here: in a Complete Model the adapter is merged already, and would be \
                 applied twice; remove this line"
                    .into(),
            ),
            Name::Draft => fault(
                "DRAFT has no place here: Tenon sends one model, the Complete Model; remove this line".into(),
            ),
            Name::Template => match PromptTemplate::parse(&value) {
                Ok(template) => {
                    self.template = Some(template);
                    Ok(())
                }
                Err(fault) => Err(vec![move_into(text, command, &value, fault)]),
            },
            Name::System => {
                self.system = Some(value);
                Ok(())
            }
            Name::License => {
                self.licenses.push(value);
                Ok(())
            }
            Name::Message(role) => {
                self.messages.push(Message::new(role, value));
                Ok(())
            }
            Name::Renderer | Name::Parser => {
                let (known, what): (&[&str], _) = match command.name {
                    Name::Renderer => (&RENDERERS, "renderer"),
                    _ => (&PARSERS, "parser"),
                };
                if !known.contains(&value.as_str()) {
                    let near = nearest(&value, known.iter().copied());
                    let reason = format!(
                        "the {what} {value:?} is not among those that Ollama is known to have{near}; a newer Ollama may have it"
                    );
                    self.warnings.push(Fault::at(text, command.at, reason));
                }
                match command.name {
                    Name::Renderer => self.renderer = Some(value),
                    _ => self.parser = Some(value),
                }
                Ok(())
            }
            Name::Requires if is_version(&value) => {
                self.requires = Some(value.trim_start_matches('v').into());
                Ok(())
            }
            Name::Requires => fault(format!("REQUIRES takes a version such as 0.14.0, not {value:?}")),
            Name::Parameter(name) => match parameter(name, &value) {
                Ok(Parameter::Value(value)) => {
                    self.parameters.insert(name.clone(), value);
                    Ok(())
                }
                Ok(Parameter::Element(value)) => {
                    let list = self.parameters.entry(name.clone()).or_insert_with(|| Json::Array(Vec::new()));
                    if let Json::Array(elements) = list {
                        elements.push(Json::String(value));
                    }
                    Ok(())
                }
                Ok(Parameter::PassedOver) => {
                    let reason = format!("Ollama passes over {name}, which earlier versions had; remove it");
                    self.warnings.push(Fault::at(text, command.at, reason));
                    Ok(())
                }
                Err(reason) => Err(vec![Fault::at(text, command.place(0), reason)]),
            },
        }
    }

    /// What a server is told of it.
    pub fn settings(&self) -> ModelSettings {
        let messages = self
            .messages
            .iter()
            .map(|message| crate::Message { role: message.role.clone(), content: message.content.clone() });
        ModelSettings {
            template: self.template.as_ref().map(|template| template.text().into()),
            system: self.system.clone(),
            parameters: self.parameters.clone(),
            licenses: self.licenses.clone(),
            messages: messages.collect(),
            renderer: self.renderer.clone(),
            parser: self.parser.clone(),
            requires: self.requires.clone(),
        }
    }

    /// The prompt that the model would get for a conversation, this file's system text and messages
    /// included as Ollama puts them in; `None` where a renderer of the server makes it.
    ///
    /// # Errors
    /// See [`PromptTemplate::render`].
    pub fn preview(&self, conversation: &Conversation) -> Result<Option<String>, Fault> {
        let Some(template) = &self.template else { return Ok(None) };
        let mut whole = conversation.clone();
        let brings_system = conversation.messages.first().is_some_and(|message| message.role == "system");
        whole.messages.splice(0..0, self.messages.iter().cloned());
        if let Some(system) = self.system.as_ref().filter(|system| !system.is_empty() && !brings_system) {
            whole.messages.insert(0, Message::new("system", system));
        }
        template.render(&whole).map(Some)
    }
}

fn template_text(template: &PromptTemplate) -> String {
    template.text().into()
}

/// Moves a fault from its place in a value to that in the file.
fn move_into(text: &str, command: &Command, value: &str, fault: Fault) -> Fault {
    let line_start = value.split_inclusive('\n').take(fault.line - 1).map(str::len).sum::<usize>();
    let line = &value[line_start..];
    let byte = line_start + line.chars().take(fault.column - 1).map(char::len_utf8).sum::<usize>();
    Fault::at(text, command.place(byte), fault.reason)
}

/// What is wrong with a template that parses, and what may surprise.
fn examine(template: &PromptTemplate) -> (Vec<Fault>, Vec<Fault>) {
    let mut faults = template.check();
    let mut warnings = Vec::new();
    if !template.has_messages() && !template.names("prompt") {
        let reason =
            "neither .Messages nor .Prompt is used anywhere: what people say would not reach the model";
        faults.push(Fault::at(template.text(), 0, reason));
    }
    if !faults.is_empty() {
        return (faults, warnings);
    }
    for sample in sample::for_checks() {
        if !faults.is_empty() {
            break;
        }
        match template.render(&sample.conversation) {
            Err(fault) => {
                let reason = format!("{} (for {})", fault.reason, sample.name);
                faults.push(Fault { reason, ..fault });
                return (faults, warnings);
            }
            Ok(prompt) => {
                for (text, what, must) in &sample.expected {
                    if prompt.contains(text) {
                        continue;
                    }
                    let reason = format!("{what} does not reach the model (for {})", sample.name);
                    let fault = Fault::at(template.text(), 0, reason);
                    if *must { faults.push(fault) } else { warnings.push(fault) }
                }
            }
        }
    }
    (faults, warnings)
}
