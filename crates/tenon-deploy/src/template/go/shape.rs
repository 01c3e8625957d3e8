//! What the values are made of that Ollama gives to a template.
//!
//! One table serves the check before anything runs, the access to fields, and
//! the two ways in which Go writes a value (`fmt` and `encoding/json`).

/// A Go `struct`.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [Field],
    /// Whether it is printed as JSON.
    pub(crate) prints_json: bool,
}

/// A field of a record.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    /// Its key in JSON.
    pub(crate) json: &'static str,
    /// Whether JSON leaves it out when it is empty.
    pub(crate) optional: bool,
    pub(crate) shape: Shape,
}

/// What is known of a value before there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Shape {
    /// Anything: what users put into tools and arguments, and what cannot be told.
    Any,
    Text,
    Int,
    Bool,
    /// The variables that a template starts with.
    Variables,
    Record(&'static Record),
    List(&'static Shape),
    Map(&'static Shape),
    /// A map that keeps its order, behind a pointer: it has methods, and no fields.
    OrderedMap,
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Record {
    pub(crate) fn position(&self, field: &str) -> Option<usize> {
        self.fields.iter().position(|known| known.name == field)
    }
}

const fn field(name: &'static str, json: &'static str, optional: bool, shape: Shape) -> Field {
    Field { name, json, optional, shape }
}

static ANY: Shape = Shape::Any;
static TEXT: Shape = Shape::Text;
static INT: Shape = Shape::Int;
static BYTES: Shape = Shape::List(&INT);
static MESSAGE_SHAPE: Shape = Shape::Record(&MESSAGE);
static TOOL_SHAPE: Shape = Shape::Record(&TOOL);
static CALL_SHAPE: Shape = Shape::Record(&CALL);
static PROPERTY_SHAPE: Shape = Shape::Record(&PROPERTY);

/// The variables at the start of a template.
pub(crate) static VARIABLES: [(&str, Shape); 9] = [
    ("Messages", Shape::List(&MESSAGE_SHAPE)),
    ("System", Shape::Text),
    ("Prompt", Shape::Text),
    ("Response", Shape::Text),
    ("Suffix", Shape::Text),
    ("Tools", Shape::List(&TOOL_SHAPE)),
    ("Think", Shape::Bool),
    ("ThinkLevel", Shape::Text),
    ("IsThinkSet", Shape::Bool),
];

/// An element of `.Messages`.
pub(crate) static MESSAGE: Record = Record {
    name: "message",
    prints_json: false,
    fields: &[
        field("Role", "Role", false, Shape::Text),
        field("Content", "Content", false, Shape::Text),
        field("Thinking", "Thinking", false, Shape::Text),
        field("Images", "Images", false, Shape::List(&BYTES)),
        field("ToolCalls", "ToolCalls", false, Shape::List(&CALL_SHAPE)),
        field("ToolName", "ToolName", false, Shape::Text),
        field("ToolCallID", "ToolCallID", false, Shape::Text),
    ],
};

/// An element of a message's `.ToolCalls`.
pub(crate) static CALL: Record = Record {
    name: "tool call",
    prints_json: false,
    fields: &[
        field("ID", "ID", false, Shape::Text),
        field("Function", "Function", false, Shape::Record(&CALLED_FUNCTION)),
    ],
};

/// `.Function` of a tool call.
pub(crate) static CALLED_FUNCTION: Record = Record {
    name: "function of a tool call",
    prints_json: false,
    fields: &[
        field("Index", "Index", false, Shape::Int),
        field("Name", "Name", false, Shape::Text),
        field("Arguments", "Arguments", false, Shape::Map(&ANY)),
    ],
};

/// An element of `.Tools`.
pub(crate) static TOOL: Record = Record {
    name: "tool",
    prints_json: true,
    fields: &[
        field("Type", "type", false, Shape::Text),
        field("Items", "items", true, Shape::Any),
        field("Function", "function", false, Shape::Record(&FUNCTION)),
    ],
};

/// `.Function` of a tool.
pub(crate) static FUNCTION: Record = Record {
    name: "function of a tool",
    prints_json: false,
    fields: &[
        field("Name", "name", false, Shape::Text),
        field("Description", "description", false, Shape::Text),
        field("Parameters", "parameters", false, Shape::Record(&PARAMETERS)),
    ],
};

/// `.Function.Parameters` of a tool.
pub(crate) static PARAMETERS: Record = Record {
    name: "parameters of a tool",
    prints_json: false,
    fields: &[
        field("Type", "type", false, Shape::Text),
        field("Defs", "$defs", true, Shape::Any),
        field("Items", "items", true, Shape::Any),
        field("Required", "required", true, Shape::List(&TEXT)),
        field("Properties", "properties", false, Shape::Map(&PROPERTY_SHAPE)),
    ],
};

/// A value of `.Function.Parameters.Properties`.
pub(crate) static PROPERTY: Record = Record {
    name: "property of a tool",
    prints_json: false,
    fields: &[
        field("AnyOf", "anyOf", true, Shape::List(&PROPERTY_SHAPE)),
        field("Type", "type", true, Shape::List(&TEXT)),
        field("Items", "items", true, Shape::Any),
        field("Description", "description", true, Shape::Text),
        field("Enum", "enum", true, Shape::List(&ANY)),
        field("Properties", "properties", true, Shape::OrderedMap),
        field("Required", "required", true, Shape::List(&TEXT)),
    ],
};
