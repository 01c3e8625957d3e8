//! Deployment: where Complete Models go to be served, and what they need on
//! the way there.
//!
//! * [`template`]: Deployment Template Files, parsed, checked and rendered as
//!   Ollama does it.

mod error;
pub mod template;

pub use error::Error;
