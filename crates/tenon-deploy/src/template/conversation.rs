//! Conversations that templates are rendered for.

use std::rc::Rc;

use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value as Json};

use super::go::shape::{CALL, CALLED_FUNCTION, FUNCTION, MESSAGE, PARAMETERS, PROPERTY, Shape, TOOL};
use super::go::value::{ListPrints, Map, Value};

/// What a template is rendered for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conversation {
    /// Messages, oldest first.
    pub messages: Vec<Message>,
    /// Tools as the APIs of Ollama and OpenAI describe them: `{"type": "function", "function": {…}}`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Json>,
    /// Whether the model shall think, where the caller said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub think: Option<bool>,
    /// How hard, for the models that know levels.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub think_level: String,
    /// Text before a gap, with `suffix`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prompt: String,
    /// Text behind a gap that the model is to fill.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub suffix: String,
}

/// One message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Its text.
    pub content: String,
    /// What the model thought before it answered.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// Calls that the assistant made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's answer: which tool.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_name: String,
    /// Of a tool's answer: which call.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_call_id: String,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }
}

/// A call that the assistant made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolCall {
    /// Its name for the answer.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// What is called.
    pub function: CalledFunction,
}

/// What a call calls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CalledFunction {
    /// Its position among the calls.
    pub index: i64,
    /// The tool's name.
    pub name: String,
    /// Arguments by name.
    pub arguments: Option<JsonMap<String, Json>>,
}

impl Conversation {
    /// A conversation of messages.
    pub fn of(messages: impl IntoIterator<Item = Message>) -> Self {
        Self { messages: messages.into_iter().collect(), ..Self::default() }
    }

    /// Messages as Ollama hands them to a template: the system's texts joined, and neighbours of one
    /// role made one message with an empty line between.
    pub(crate) fn collated(&self) -> (String, Vec<Message>) {
        let systems = self.messages.iter().filter(|message| message.role == "system");
        let system = systems.map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n");
        let mut collated: Vec<Message> = Vec::new();
        for message in &self.messages {
            match collated.last_mut() {
                Some(last) if last.role == message.role && message.role != "tool" => {
                    last.content.push_str("\n\n");
                    last.content.push_str(&message.content);
                }
                _ => collated.push(message.clone()),
            }
        }
        (system, collated)
    }
}

fn text_list(json: Option<&Json>) -> Value {
    let items = json.and_then(Json::as_array).into_iter().flatten();
    Value::list_or_nil(items.filter_map(Json::as_str).map(Value::from).collect(), ListPrints::Plain)
}

fn text(json: Option<&Json>) -> Value {
    Value::from(json.and_then(Json::as_str).unwrap_or_default())
}

fn any(json: Option<&Json>) -> Value {
    json.map_or(Value::Nil, Value::from)
}

impl Message {
    pub(crate) fn value(&self) -> Value {
        let calls = self.tool_calls.iter().map(ToolCall::value).collect();
        Value::Record(
            &MESSAGE,
            Rc::new([
                Value::from(self.role.as_str()),
                Value::from(self.content.as_str()),
                Value::from(self.thinking.as_str()),
                Value::list_or_nil(Vec::new(), ListPrints::Plain),
                Value::list_or_nil(calls, ListPrints::Plain),
                Value::from(self.tool_name.as_str()),
                Value::from(self.tool_call_id.as_str()),
            ]),
        )
    }
}

impl ToolCall {
    fn value(&self) -> Value {
        let entries = self.function.arguments.iter().flatten();
        let arguments = Map {
            entries: Rc::new(entries.map(|(key, value)| (key.clone(), Value::from(value))).collect()),
            prints_json: true,
            nil: self.function.arguments.is_none(),
            element: Shape::Any,
        };
        let function = [
            Value::Int(self.function.index),
            Value::from(self.function.name.as_str()),
            Value::Map(arguments),
        ];
        let function = Value::Record(&CALLED_FUNCTION, Rc::new(function));
        Value::Record(&CALL, Rc::new([Value::from(self.id.as_str()), function]))
    }
}

/// A tool's description as Ollama reads it.
pub(crate) fn tool(json: &Json) -> Value {
    let function = json.get("function").unwrap_or(&Json::Null);
    let parameters = function.get("parameters").unwrap_or(&Json::Null);
    let properties = parameters.get("properties").and_then(Json::as_object);
    let entries = properties.into_iter().flatten();
    let properties = Map {
        entries: Rc::new(entries.map(|(name, schema)| (name.clone(), property(schema))).collect()),
        prints_json: true,
        nil: properties.is_none(),
        element: Shape::Record(&PROPERTY),
    };
    let parameters = [
        text(parameters.get("type")),
        any(parameters.get("$defs")),
        any(parameters.get("items")),
        text_list(parameters.get("required")),
        Value::Map(properties),
    ];
    let function = [
        text(function.get("name")),
        text(function.get("description")),
        Value::Record(&PARAMETERS, Rc::new(parameters)),
    ];
    let tool = [text(json.get("type")), any(json.get("items")), Value::Record(&FUNCTION, Rc::new(function))];
    Value::Record(&TOOL, Rc::new(tool))
}

fn property(schema: &Json) -> Value {
    let list = |key: &str| schema.get(key).and_then(Json::as_array).into_iter().flatten();
    let types = match schema.get("type") {
        Some(Json::String(name)) => Value::list(vec![Value::from(name.as_str())], ListPrints::Types),
        Some(Json::Array(names)) => {
            Value::list(names.iter().filter_map(Json::as_str).map(Value::from).collect(), ListPrints::Types)
        }
        _ => Value::list_or_nil(Vec::new(), ListPrints::Types),
    };
    let nested = schema.get("properties").and_then(Json::as_object);
    let nested =
        nested.map(|entries| entries.iter().map(|(name, schema)| (name.clone(), property(schema))).collect());
    let fields = [
        Value::list_or_nil(list("anyOf").map(property).collect(), ListPrints::Plain),
        types,
        any(schema.get("items")),
        text(schema.get("description")),
        Value::list_or_nil(list("enum").map(Value::from).collect(), ListPrints::Plain),
        Value::Ordered(nested),
        text_list(schema.get("required")),
    ];
    Value::Record(&PROPERTY, Rc::new(fields))
}
