//! OSF: `W' = W - U_m S_m V_mᵀ + U S Vᵀ`, the base's smallest singular directions replaced by trained ones.
//!
//! `U_m S_m V_mᵀ` is the part of `W` along its `m` smallest singular values: all but the largest
//! `effective_rank` (half of the smaller side where nothing is said). The adapter has what became of it:
//! `osf_svd_params.U_low [out, m]`, `S_low [m]`, `V_low [m, in]`. What it replaces PEFT takes from the base when
//! the adapter is loaded; where the `m` smallest singular values are distinct from the others it is one matrix,
//! whatever signs a decomposition picks, so that the result is what is left of the base plus `U S V`. In 16 bits
//! PEFT rounds the factors of what it takes out, and so takes out a little more or less; Tenon takes out just
//! that. Sources: Nayak et al. 2025; PEFT 0.21.2, `tuners/osf/layer.py`, `utils.py`.

use super::layer::Features;
use super::product::{Factors, Pair, Product, decomposition_bytes, instead_of_smallest};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, ValueRows};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "OSF",
    name: "OSF",
    formula: "`W - U_m S_m V_mᵀ + U S V`, the `m` smallest singular directions replaced",
    source: "Nayak et al. 2025",
    merging: Merging::Reads(read),
};

#[derive(Debug)]
struct Osf;

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    // The tensors tell how many directions are trained.
    config.refuse_unknown_fields(&["effective_rank", "init_weights", "rank_pattern", "target_svd_config"])?;
    Ok(Box::new(Osf))
}

impl Method for Osf {
    fn parameters(&self) -> &'static [&'static str] {
        &["osf_svd_params.*"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            let need = |name: &str| module.need(&format!("osf_svd_params.{name}"), planner);
            let (u, s, v) = (need("U_low")?, need("S_low")?, need("V_low")?);
            let features = |tensor: usize, at: usize| planner.adapter_shape(tensor).get(at).copied();
            let features = Features { out: features(u, 0), input: features(v, 1) };
            let layer = planner.layer(module, u, features)?;
            planner.expect_plain(u, &layer)?;
            if layer.is_conv() {
                return Err(planner.shape_error(u, layer.slot, "the weight of a linear layer".into()));
            }
            let smaller = layer.out.min(layer.input);
            let trained = match planner.adapter_shape(s) {
                [trained] if *trained <= smaller => *trained,
                _ => {
                    let expected = format!("at most {smaller} singular values");
                    return Err(planner.shape_error(s, layer.slot, expected));
                }
            };
            planner.expect_shape(u, layer.slot, &[layer.out, trained])?;
            planner.expect_shape(v, layer.slot, &[trained, layer.input])?;
            // All directions were kept: nothing was trained.
            if trained == 0 {
                continue;
            }
            let factors = OsfFactors { u, s, v, trained: trained as usize };
            let product = Product::new(planner, &layer, u, 2 * trained, 1.0, factors)?;
            planner.edit(layer.slot, "OSF", product.holding(decomposition_bytes(&layer)));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct OsfFactors {
    u: usize,
    s: usize,
    v: usize,
    trained: usize,
}

impl Factors for OsfFactors {
    fn factors(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Pair, Error> {
        let (u, s, v) = (adapter.values(self.u)?, adapter.values(self.s)?, adapter.values(self.v)?);
        let scaled = u.iter().zip(s.iter().cycle()).map(|(u, s)| u * s);
        instead_of_smallest(before, self.trained, scaled, &v)
    }
}
