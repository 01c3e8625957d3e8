//! LN tuning: trained copies of whole modules, LayerNorms as a rule.
//!
//! `ln_tuning_layers.weight` and `.bias` take the place of the module's own,
//! as tensors that an adapter holds whole do ([`crate::saved`]). Sources: Zhao
//! et al. 2023; PEFT 0.21.2, `tuners/ln_tuning/layer.py`.

use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "LN_TUNING",
    name: "LN tuning",
    formula: "the trained module replaces the base's",
    source: "Zhao et al. 2023",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct LnTuning;

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&[])?;
    Ok(Box::new(LnTuning))
}

impl Method for LnTuning {
    fn parameters(&self) -> &'static [&'static str] {
        &[]
    }

    fn plan(&self, _: &[Module], _: &mut Planner<'_>) -> Result<(), Error> {
        Ok(())
    }
}
