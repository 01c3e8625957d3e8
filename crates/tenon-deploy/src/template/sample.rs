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
