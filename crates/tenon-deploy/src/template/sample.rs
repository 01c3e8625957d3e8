//! Conversations that every template is tried on.

use serde_json::json;

use super::conversation::{CalledFunction, Conversation, Message, ToolCall};

/// A conversation, and what of it must come out again.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) conversation: Conversation,
    /// Text, what it is, and whether a template without it is wrong or only surprising.
    pub(crate) expected: Vec<(&'static str, &'static str, bool)>,
}

fn conversation(messages: &[(&str, &str)]) -> Conversation {
    Conversation::of(messages.iter().map(|(role, content)| Message::new(*role, *content)))
}

/// On what a Go template and a model's own are compared; what must agree has something expected.
pub(crate) fn for_agreement() -> Vec<Sample> {
    let must = || vec![("", "", true)];
    let plain = |name, messages: &[(&str, &str)]| Sample {
        name,
        conversation: conversation(messages),
        expected: must(),
    };
    let (system, ark, noah) = ("Answer in one word.", "Who built the ark?", "Noah did.");
    let sons = "How many sons had he?";
    let tools = for_checks().pop().expect("the last sample is that with tools");
    vec![
        plain("one question", &[("user", ark)]),
        plain("a system's text and a question", &[("system", system), ("user", ark)]),
        plain("a second question", &[("user", ark), ("assistant", noah), ("user", sons)]),
        plain(
            "a system's text and two questions",
            &[("system", system), ("user", ark), ("assistant", noah), ("user", sons)],
        ),
        plain(
            "a long conversation",
            &[
                ("system", "Be brief.\n\nBe kind."),
                ("user", "Line one\nline two {{ x }}"),
                ("assistant", "1. a\n2. b"),
                ("user", sons),
                ("assistant", "Three: Shem, Ham \u{26} Japheth"),
                ("user", "\u{e9}\u{4e16}\u{754c}?"),
            ],
        ),
        Sample {
            name: "spaces around what is said",
            conversation: conversation(&[
                ("user", "  Who built it? \n"),
                ("assistant", " Noah. "),
                ("user", sons),
            ]),
            expected: Vec::new(),
        },
        Sample { expected: Vec::new(), ..tools },
    ]
}

/// What templates meet at Ollama: with and without a system's text, several turns, tools.
pub(crate) fn for_checks() -> Vec<Sample> {
    let mut with_tools = conversation(&[("user", "Is it raining in Bath?")]);
    with_tools.tools = vec![json!({"type": "function", "function": {
        "name": "weather", "description": "Weather in a place",
        "parameters": {"type": "object", "required": ["place"], "properties": {
            "place": {"type": "string", "description": "A town"},
            "days": {"type": ["integer", "null"], "enum": [1, 2]}}}}})];
    let arguments = json!({"place": "Bath", "days": 1});
    let call = CalledFunction { index: 0, name: "weather".into(), arguments: arguments.as_object().cloned() };
    with_tools.messages.push(Message {
        role: "assistant".into(),
        tool_calls: vec![ToolCall { id: "1".into(), function: call }],
        ..Message::default()
    });
    with_tools.messages.push(Message { tool_name: "weather".into(), ..Message::new("tool", "It rains.") });
    let user = "what the user says";
    vec![
        Sample {
            name: "one question",
            conversation: conversation(&[("user", "Who built the ark?")]),
            expected: vec![("Who built the ark?", user, true)],
        },
        Sample {
            name: "a system's text and a question",
            conversation: conversation(&[("system", "Answer in one word."), ("user", "Who built the ark?")]),
            expected: vec![
                ("Who built the ark?", user, true),
                ("Answer in one word.", "the system's text", false),
            ],
        },
        Sample {
            name: "a second question",
            conversation: conversation(&[
                ("user", "Who built the ark?"),
                ("assistant", "Noah did."),
                ("user", "How many sons had he?"),
            ]),
            expected: vec![
                ("How many sons had he?", user, true),
                ("Who built the ark?", "what the user said before", true),
                ("Noah did.", "what the model said before", true),
            ],
        },
        Sample { name: "a conversation with tools", conversation: with_tools, expected: Vec::new() },
    ]
}
