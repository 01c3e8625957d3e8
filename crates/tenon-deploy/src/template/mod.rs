//! Deployment Template Files: a Go template or a Modelfile.

mod fault;

pub use fault::Fault;
