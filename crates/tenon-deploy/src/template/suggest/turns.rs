//! From a model's prompts to a Go template: conversations of marked messages are
//! rendered, and what stands between the marks is how the model sets messages
//! apart.

use super::jinja::ChatTemplate;
use crate::template::{Conversation, Message};

/// How a model sets messages apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turns {
    /// Before everything, whether or not there is a system's text.
    head: String,
    /// After it where there is no system's text.
    without_system: String,
    system: System,
    user: (String, String),
    assistant: (String, String),
    /// Behind the last user's message: where the assistant begins.
    generation: String,
}

/// What becomes of the system's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum System {
    /// A message of its own.
    Message(String, String),
    /// It goes into a user's message, before the text, in place of what stands before that otherwise.
    InUser { first: bool, before: String, between: String },
    /// The model's own template takes none; it is put before the first user's text all the same.
    Refused,
    /// The model's own template leaves it out.
    LeftOut,
}

const SYSTEM: &str = "QzSystemTextzQ";
const USER: [&str; 3] = ["QzFirstUserzQ", "QzSecondUserzQ", "QzThirdUserzQ"];
const ASSISTANT: [&str; 2] = ["QzFirstAnswerzQ", "QzSecondAnswerzQ"];

/// Renders the messages' marks, without the token that the tokenizer adds by itself.
pub(crate) struct Probe<'t> {
    pub(crate) template: &'t ChatTemplate,
    pub(crate) added_bos: Option<&'t str>,
}

impl Probe<'_> {
    pub(crate) fn render(&self, conversation: &Conversation, generation: bool) -> Result<String, String> {
        let prompt = self.template.render(conversation, generation)?;
        Ok(match self.added_bos.and_then(|bos| prompt.strip_prefix(bos)) {
            Some(rest) => rest.to_string(),
            None => prompt,
        })
    }

    /// What stands between the marks of a conversation, each of which must be there once and in order.
    fn between(&self, messages: &[(&str, &str)], generation: bool) -> Result<Vec<String>, String> {
        let conversation = messages.iter().map(|(role, text)| Message::new(*role, *text));
        let prompt = self.render(&Conversation::of(conversation), generation)?;
        let mut parts = Vec::new();
        let mut rest = prompt.as_str();
        for (_, mark) in messages {
            let Some((before, after)) = rest.split_once(mark) else {
                return Err(format!("the message {mark} does not come out in its place, or changed"));
            };
            parts.push(before.to_string());
            rest = after;
        }
        if messages.iter().any(|(_, mark)| rest.contains(mark)) {
            return Err("a message comes out twice".into());
        }
        parts.push(rest.to_string());
        Ok(parts)
    }
}

impl Turns {
    /// Finds out. The error says what of the model's template has no likeness here.
    pub(crate) fn of(probe: &Probe<'_>) -> Result<Self, String> {
        let [u1, u2, u3] = USER.map(|mark| ("user", mark));
        let [a1, a2] = ASSISTANT.map(|mark| ("assistant", mark));
        let long = probe.between(&[u1, a1, u2, a2, u3], true)?;
        let (to_assistant, to_user) = (&long[1], &long[2]);
        let generation = long[5].clone();
        // How an answer ends is seen best where nothing follows it; a user's message likewise.
        let answered = probe.between(&[u1, a1], false).ok().and_then(|mut parts| parts.pop());
        let asked = probe.between(&[u1], false).ok().and_then(|mut parts| parts.pop());
        let after_assistant = match answered {
            Some(tail) if to_user.strip_prefix(&tail).is_some_and(|user| long[0].ends_with(user)) => tail,
            // Otherwise what a first message has before it, too, belongs to the user's.
            _ => to_user[..to_user.len() - common_suffix(to_user, &long[0])].to_string(),
        };
        let before_user = to_user[after_assistant.len()..].to_string();
        let after_user = match asked {
            Some(tail) if to_assistant.starts_with(&tail) && generation.starts_with(&tail) => tail,
            _ => String::new(),
        };
        let before_assistant = to_assistant[after_user.len()..].to_string();
        let begin = long[0][..long[0].len() - before_user.len()].to_string();
        let system = find_system(probe, &before_user)?;
        let (head, without_system, system) = match system {
            System::Message(before, after) => {
                // What both begin with is not the system's.
                let shared = if before.starts_with(&begin) { begin.len() } else { 0 };
                let (head, before) = before.split_at(shared);
                (head.to_string(), begin[shared..].to_string(), System::Message(before.into(), after))
            }
            System::InUser { first: true, before, between } => {
                // The whole beginning of the prompt is in `before`.
                (String::new(), begin, System::InUser { first: true, before, between })
            }
            other => (begin, String::new(), other),
        };
        Ok(Self {
            head,
            without_system,
            system,
            user: (before_user, after_user.clone()),
            assistant: (before_assistant, after_assistant),
            generation: generation[after_user.len()..].to_string(),
        })
    }

    /// What ends an answer.
    pub(crate) fn answer_end(&self) -> &str {
        &self.assistant.1
    }

    /// What of the conversation is lost or treated otherwise than the model's own template does.
    pub(crate) fn notes(&self) -> Vec<String> {
        match self.system {
            System::Refused => vec![
                "the model's own template refuses a system's text; here it goes before the first user's text"
                    .into(),
            ],
            System::LeftOut => {
                vec!["the model's own template leaves the system's text out, and so does this".into()]
            }
            _ => Vec::new(),
        }
    }

    /// The Go template.
    pub(crate) fn go(&self) -> String {
        let mut go = Go::default();
        go.text(&self.head);
        let in_first_user = matches!(self.system, System::InUser { first: true, .. } | System::Refused);
        if !self.without_system.is_empty() {
            go.action("if not .System");
            go.text(&self.without_system);
            go.action("end");
        }
        if in_first_user {
            go.action("$first := true");
        }
        go.action("range $i, $message := .Messages");
        go.action("$last := eq (len (slice $.Messages $i)) 1");
        let mut word = "if";
        if let System::Message(before, after) = &self.system {
            go.action(r#"if eq .Role "system""#);
            go.text(before);
            go.action(".Content");
            go.text(after);
            word = "else if";
        }
        go.action(&format!(r#"{word} eq .Role "user""#));
        match &self.system {
            System::InUser { first, before, between } => {
                let place = if *first { "$first" } else { "$last" };
                go.action(&format!("if and {place} $.System"));
                go.text(before);
                go.action("$.System");
                go.text(between);
                go.action("else");
                go.text(&self.user.0);
                go.action("end");
            }
            System::Refused => {
                go.text(&self.user.0);
                go.action("if and $first $.System");
                go.action("$.System");
                go.text("\n\n");
                go.action("end");
            }
            System::Message(..) | System::LeftOut => go.text(&self.user.0),
        }
        if in_first_user {
            go.action("$first = false");
        }
        go.action(".Content");
        go.text(&self.user.1);
        if !self.generation.is_empty() {
            go.action("if $last");
            go.text(&self.generation);
            go.action("end");
        }
        go.action(r#"else if eq .Role "assistant""#);
        go.text(&self.assistant.0);
        go.action(".Content");
        if !self.assistant.1.is_empty() {
            go.action("if not $last");
            go.text(&self.assistant.1);
            go.action("end");
        }
        go.action("end");
        go.action("end");
        go.out
    }
}

fn find_system(probe: &Probe<'_>, before_user: &str) -> Result<System, String> {
    let [u1, u2, _] = USER.map(|mark| ("user", mark));
    let a1 = ("assistant", ASSISTANT[0]);
    let system = ("system", SYSTEM);
    let conversation = Conversation::of([Message::new("system", SYSTEM), Message::new("user", USER[0])]);
    let Ok(prompt) = probe.render(&conversation, true) else { return Ok(System::Refused) };
    if !prompt.contains(SYSTEM) {
        return Ok(System::LeftOut);
    }
    let parts = probe.between(&[system, u1, a1, u2], true);
    if let Ok(parts) = parts {
        if let Some(after) = parts[1].strip_suffix(before_user) {
            return Ok(System::Message(parts[0].clone(), after.into()));
        }
        return Ok(System::InUser { first: true, before: parts[0].clone(), between: parts[1].clone() });
    }
    let parts = probe.between(&[u1, a1, system, u2], true);
    // The system's message comes first in the conversation, and may come out before the last user's.
    let conversation = [system, u1, a1, u2].map(|(role, mark)| Message::new(role, mark));
    let prompt = probe.render(&Conversation::of(conversation), true)?;
    let behind_answer = prompt.split_once(ASSISTANT[0]).map(|(_, rest)| rest);
    let found = behind_answer.and_then(|rest| {
        let (before, rest) = rest.split_once(SYSTEM)?;
        let (between, _) = rest.split_once(USER[1])?;
        Some((before.to_string(), between.to_string()))
    });
    let Some((before, between)) = found else {
        return Err(match parts {
            Err(reason) => format!("the system's text: {reason}"),
            Ok(_) => "the system's text comes out in a place that is not understood".into(),
        });
    };
    // Before it stands the end of the answer, which is not the user's.
    let end = common_prefix_to_user(probe, &before);
    Ok(System::InUser { first: false, before: before[end..].to_string(), between })
}

/// Bytes of the answer's end at the start of what follows the first answer.
fn common_prefix_to_user(probe: &Probe<'_>, behind: &str) -> usize {
    let messages = [("user", USER[0]), ("assistant", ASSISTANT[0])];
    let tail = probe.between(&messages, false).ok().and_then(|mut parts| parts.pop());
    tail.filter(|tail| behind.starts_with(tail.as_str())).map_or(0, |tail| tail.len())
}

fn common_suffix(a: &str, b: &str) -> usize {
    let same = a.chars().rev().zip(b.chars().rev()).take_while(|(a, b)| a == b);
    same.map(|(c, _)| c.len_utf8()).sum()
}

/// Writes a Go template: actions on lines of their own where no text is beside them.
#[derive(Default)]
struct Go {
    out: String,
    after_action: bool,
}

impl Go {
    fn action(&mut self, action: &str) {
        if self.after_action {
            // The newline is cut away by the marker, for there is nothing else before it.
            self.out.push_str("\n{{- ");
        } else {
            self.out.push_str("{{ ");
        }
        self.out.push_str(action);
        self.out.push_str(" }}");
        self.after_action = true;
    }

    fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        // What looks like an action, or may grow together with the next one, and what Ollama's
        // Modelfile would leave out or end at, goes into quotes.
        let plain = !text.contains("{{")
            && !text.ends_with('{')
            && !text.contains("\"\"\"")
            && text.chars().all(|c| c == '\n' || crate::template::printable(c));
        if plain {
            self.out.push_str(text);
        } else {
            self.out.push_str(&format!("{{{{ {} }}}}", quoted(text)));
        }
        self.after_action = false;
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if crate::template::printable(c) => out.push(c),
            c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}
