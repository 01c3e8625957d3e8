//! Go's `text/template`: the language that Ollama's templates are written in.
//!
//! Parsed to the letter; rendered for the values and functions that Ollama has.

pub(crate) mod check;
pub(crate) mod execute;
pub(crate) mod function;
mod lexer;
mod literal;
mod parser;
mod printf;
pub(crate) mod shape;
pub(crate) mod tree;
pub(crate) mod value;

pub(crate) use lexer::Mistake;
pub(crate) use parser::parse;
