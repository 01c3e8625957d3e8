//! One file a command, or a few that belong together.

pub(crate) mod base;
pub(crate) mod blend;
mod combination;
pub(crate) mod combine;
pub(crate) mod complete;
pub(crate) mod customized;
pub(crate) mod deploy;
pub(crate) mod env;
pub(crate) mod gguf;
pub(crate) mod inspect;
pub(crate) mod jobs;
pub(crate) mod live;
pub(crate) mod merge;
pub(crate) mod registry;
pub(crate) mod save;
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod template;
