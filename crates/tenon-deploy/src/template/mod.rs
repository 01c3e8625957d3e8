//! Deployment Template Files: a Go template or a Modelfile.
//!
//! [`DeploymentTemplate`] is a file that was read and found right: syntax, the
//! variables and functions that Ollama has, names and types of parameters, and
//! that what people say reaches the model. [`PromptTemplate`] is the Go template
//! in it, and renders conversations to the byte as Ollama does. [`suggest`] makes
//! a file from a model's own `chat_template`, and [`agreement`] compares the two.

mod conversation;
mod fault;
mod file;
mod go;
mod modelfile;
mod parameter;
mod prompt;
mod sample;
mod suggest;

pub use conversation::{CalledFunction, Conversation, Message, ToolCall};
pub use fault::{Fault, Faults};
pub use file::DeploymentTemplate;
pub use prompt::PromptTemplate;
pub use suggest::{Agreement, Suggestion, agreement, suggest};

/// Whether Go calls a character printable: letters, marks, numbers, punctuation, symbols and the
/// space.
pub(crate) fn printable(c: char) -> bool {
    // Rust escapes the same categories; behind another character, marks are left alone.
    matches!(c, '"' | '\'' | '\\') || format!("a{c}").escape_debug().eq(['a', c])
}
