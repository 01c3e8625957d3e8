//! A Deployment Template File from a model's own `chat_template`.
//!
//! No list of models: the template is rendered on conversations of marked
//! messages, the Go template is built of what stands between the marks, and both
//! are rendered on conversations that neither was made of, and compared.

mod jinja;
mod model;
mod turns;

use std::path::Path;

use serde::Serialize;

use self::jinja::ChatTemplate;
use self::model::ModelChat;
use self::turns::{Probe, Turns};
use super::sample::{Sample, for_agreement};
use super::{DeploymentTemplate, PromptTemplate};
use crate::Error;

/// A proposal, for a person to accept.
#[derive(Debug, Clone, Serialize)]
pub struct Suggestion {
    /// The Modelfile.
    pub modelfile: String,
    /// How its template and the model's own render the same conversations.
    pub agreement: Vec<Agreement>,
    /// What is different on purpose, or cannot be said in a Go template.
    pub notes: Vec<String>,
}

impl Suggestion {
    /// Whether the two agree on all plain conversations.
    pub fn agrees(&self) -> bool {
        self.agreement.iter().all(|agreement| agreement.agrees || !agreement.plain)
    }
}

/// How a Go template and a model's own template render one conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Agreement {
    /// What kind of conversation it is.
    pub conversation: String,
    /// Whether people have such conversations with every model; tools and odd spaces are not among them.
    pub plain: bool,
    /// Whether the prompts are the same.
    pub agrees: bool,
    /// The prompt by the model's own template, without the token that the tokenizer adds; or why
    /// there is none.
    pub model: Result<String, String>,
    /// The prompt by the Go template; or why there is none.
    pub template: Result<String, String>,
}

/// Proposes a Deployment Template File for the model in a directory.
///
/// # Errors
/// [`Error::NoChatTemplate`] where there is nothing to start from, [`Error::NoSuggestion`] where the
/// model's template has no likeness in Go.
pub fn suggest(dir: &Path) -> Result<Suggestion, Error> {
    let chat = ModelChat::read(dir)?.ok_or_else(|| Error::NoChatTemplate { dir: dir.into() })?;
    let refused = |reason: String| Error::NoSuggestion { dir: dir.into(), reason };
    let own = ChatTemplate::new(&chat.template, chat.specials.clone()).map_err(refused)?;
    let probe = Probe { template: &own, added_bos: chat.added_bos.as_deref() };
    let turns = Turns::of(&probe).map_err(refused)?;
    let text = turns.go();
    let template = PromptTemplate::parse(&text).map_err(|fault| refused(format!("{fault}")))?;
    let mut modelfile = format!("TEMPLATE \"\"\"{text}\"\"\"\n");
    for stop in stops(&chat, turns.answer_end()) {
        modelfile.push_str(&format!("PARAMETER stop \"{stop}\"\n"));
    }
    DeploymentTemplate::parse("the proposal", &modelfile).map_err(|error| refused(error.to_string()))?;
    let mut notes = turns.notes();
    if chat.template.contains("tools") {
        notes.push("tools that the model's own template knows are not in this one".into());
    }
    Ok(Suggestion { modelfile, agreement: compare(&probe, &template), notes })
}

/// Compares a template with the `chat_template` of the model in a directory; `None` where the model
/// has none, or a renderer of the server stands in for the template.
///
/// # Errors
/// As [`suggest`].
pub fn agreement(dir: &Path, file: &DeploymentTemplate) -> Result<Option<Vec<Agreement>>, Error> {
    let (Some(chat), Some(template)) = (ModelChat::read(dir)?, &file.template) else { return Ok(None) };
    let own = ChatTemplate::new(&chat.template, chat.specials.clone())
        .map_err(|reason| Error::NoSuggestion { dir: dir.into(), reason })?;
    let probe = Probe { template: &own, added_bos: chat.added_bos.as_deref() };
    Ok(Some(compare(&probe, template)))
}

fn compare(probe: &Probe<'_>, template: &PromptTemplate) -> Vec<Agreement> {
    let samples = for_agreement().into_iter();
    let compared = samples.map(|Sample { name, conversation, expected }| {
        let model = probe.render(&conversation, true);
        let template = template.render(&conversation).map_err(|fault| fault.to_string());
        // What the model's own template refuses cannot be compared.
        let plain = expected.iter().any(|(_, _, must)| *must) && model.is_ok();
        Agreement {
            conversation: name.into(),
            plain,
            agrees: model.is_ok() && model == template,
            model,
            template,
        }
    });
    compared.collect()
}

/// Tokens that end an answer: what the model's files say, and the special token that its template
/// puts there.
fn stops(chat: &ModelChat, answer_end: &str) -> Vec<String> {
    let mut stops = Vec::new();
    let at_end = chat.tokens.iter().filter(|token| answer_end.trim_start().starts_with(token.as_str()));
    for token in at_end.max_by_key(|token| token.len()).into_iter().chain(&chat.ends) {
        // A quote or a line break has no place in a line of a Modelfile.
        if !token.is_empty() && !token.contains(['"', '\n', '\r']) && !stops.contains(token) {
            stops.push(token.clone());
        }
    }
    stops
}
