//! Trainable tokens: rows of an embedding, trained alone.
//!
//! `trainable_tokens_delta [n, dim]` holds, its name notwithstanding, the rows
//! that replace those of `token_indices` ([`crate::saved`]). Source: PEFT
//! 0.21.2, `tuners/trainable_tokens/layer.py`.

use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "TRAINABLE_TOKENS",
    name: "trainable tokens",
    formula: "the trained rows replace the base's",
    source: "PEFT",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Tokens;

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["init_weights", "token_indices"])?;
    Ok(Box::new(Tokens))
}

impl Method for Tokens {
    fn parameters(&self) -> &'static [&'static str] {
        &[]
    }

    fn plan(&self, _: &[Module], _: &mut Planner<'_>) -> Result<(), Error> {
        Ok(())
    }
}
