//! BEFT: `b' = b + v`, a trained vector added to a layer's bias.
//!
//! `beft_bias` is `[1, out]`. A layer without a bias has no place for it; PEFT does not
//! merge it either. Source: PEFT 0.21.2, `tuners/beft/layer.py`.

use super::layer::Features;
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::AddScaled;
use crate::planner::Planner;
use crate::{AdapterConfig, Error};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "BEFT",
    name: "BEFT",
    formula: "`b + v`; a layer without a bias is refused, as by PEFT",
    source: "PEFT, `tuners/beft`",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Beft;

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["init_weights"])?;
    Ok(Box::new(Beft))
}

impl Method for Beft {
    fn parameters(&self) -> &'static [&'static str] {
        &["beft_bias"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let vector = module.need("beft_bias", planner)?;
            let features = Features { out: planner.adapter_shape(vector).get(1).copied(), input: None };
            let layer = planner.layer(module, vector, features)?;
            planner.expect_shape(vector, layer.slot, &[1, layer.out])?;
            let Some(bias) = planner.bias_of(&layer, vector)? else {
                return Err(Error::NoHome {
                    tensor: planner.adapter_name(vector).into(),
                    wanted: format!("{}.bias", module.path),
                    nearest: None,
                });
            };
            planner.edit(bias, "BEFT", AddScaled { tensor: vector, scale: 1.0 });
        }
        Ok(())
    }
}
