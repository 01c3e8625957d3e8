//! The methods that Tenon merges, one file each.
//!
//! To add one: write its file with a [`KnownMethod`] named `METHOD`, and add a
//! line to [`METHODS`]. `docs/adapters.md` lists what is there; a test holds
//! the two together.
//!
//! A method's file has
//!
//! * a reader of its configuration, which refuses what it does not understand
//!   ([`AdapterConfig::refuse_unknown_fields`]);
//! * a [`Method`], which finds the [`Layer`](layer::Layer) that each [`Module`]
//!   adapts, checks the shapes of the module's tensors against it and of all
//!   partners, and adds edits. Tensors that belong to no module (a bank shared
//!   by all) come as a module whose path is `base_model`;
//! * its [`Edit`](crate::Edit)s, where those in `edit.rs` do not do: names,
//!   shapes and numbers until they are prepared, then factors in `f64`. What a
//!   prepared edit computes in whole it counts in
//!   [`held_bytes`](crate::Edit::held_bytes).
//!
//! An edit turns a tile, and says whether tiles must span whole rows
//! ([`needs_whole_rows`](crate::Edit::needs_whole_rows)). Where it must see
//! several stored rows at once, it makes them one row of the matrix
//! ([`Planner::join_rows`]). Sums run in an order that shapes alone decide.

mod adalora;
mod adamss;
mod beft;
mod boft;
mod c3a;
mod deft;
mod delora;
pub(crate) mod delta;
mod factors;
mod fourierft;
mod frod;
mod glora;
mod gralora;
mod hira;
mod hra;
mod ia3;
mod initial;
mod kasa;
pub(crate) mod layer;
mod ln_tuning;
mod loha;
mod lokr;
pub(crate) mod lora;
mod lycoris;
mod miss;
mod oft;
mod osf;
mod peanut;
mod product;
mod randlora;
mod road;
mod rotation;
mod scaling;
mod shira;
mod supertuning;
mod tinylora;
mod tokens;
mod unilora;
mod vblora;
mod vera;
mod waveft;

use std::collections::BTreeMap;
use std::fmt;

use crate::planner::Planner;
use crate::{AdapterConfig, Error};

/// One way to adapt a model: which tensors it writes and which edits they make.
pub(crate) trait Method: fmt::Debug {
    /// The names by which its tensors are known: the component after the module's path. With `.*` at its
    /// end, the component after it belongs to the name: `encoders.*` for `encoders.0`.
    fn parameters(&self) -> &'static [&'static str];

    /// Adds the edits of all modules to the plan.
    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error>;
}

/// The tensors that a method wrote for one module of the model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Module {
    /// Path in the model, such as `model.layers.0.self_attn.q_proj`, without `base_layer` at its end.
    pub(crate) path: String,
    /// How many `base_layer` were at its end: 0 for the outermost of nested wrappers.
    pub(crate) depth: usize,
    /// Adapter tensors by parameter name; a bias as `lora_B.bias`.
    pub(crate) tensors: BTreeMap<String, usize>,
}

impl Module {
    pub(crate) fn get(&self, parameter: &str) -> Option<usize> {
        self.tensors.get(parameter).copied()
    }

    /// The tensor of `parameter`, or an error that names it and one that is there.
    pub(crate) fn need(&self, parameter: &str, planner: &Planner<'_>) -> Result<usize, Error> {
        self.get(parameter).ok_or_else(|| {
            let present = self.tensors.values().next().copied();
            Error::MissingPartner {
                tensor: present.map(|t| planner.adapter_name(t).into()).unwrap_or_default(),
                missing: format!("{}.{parameter}", self.path),
            }
        })
    }
}

/// How a method reads its configuration.
pub(crate) type Reader = fn(&AdapterConfig) -> Result<Box<dyn Method>, Error>;

/// A method by its `peft_type`: what it computes and whether Tenon merges it.
#[derive(Debug)]
pub struct KnownMethod {
    /// As `adapter_config.json` spells it.
    pub peft_type: &'static str,
    /// As people call it.
    pub name: &'static str,
    /// The merged weight, in Markdown.
    pub formula: &'static str,
    /// The paper, or where there is none, the code that defines it.
    pub source: &'static str,
    pub(crate) merging: Merging,
}

/// Whether a method becomes weights.
#[derive(Debug)]
pub(crate) enum Merging {
    /// Yes, once its configuration is read.
    Reads(Reader),
    /// No, and why.
    NotWeights(&'static str),
}

impl KnownMethod {
    /// Why no fixed weights equal it; nothing for a method that Tenon merges.
    pub fn refusal(&self) -> Option<&'static str> {
        match self.merging {
            Merging::Reads(_) => None,
            Merging::NotWeights(why) => Some(why),
        }
    }
}

/// Every `peft_type` that Tenon knows, in the order of `docs/adapters.md`.
pub fn methods() -> impl Iterator<Item = &'static KnownMethod> {
    METHODS.iter().copied().chain(NOT_WEIGHTS)
}

/// The methods that become weights.
const METHODS: &[&KnownMethod] = &[
    &lora::METHOD,
    &adalora::METHOD,
    &loha::METHOD,
    &lokr::METHOD,
    &ia3::METHOD,
    &oft::METHOD,
    &boft::METHOD,
    &hra::METHOD,
    &miss::METHOD,
    &miss::BONE,
    &shira::METHOD,
    &ln_tuning::METHOD,
    &tokens::METHOD,
    &vera::METHOD,
    &vera::PVERA,
    &randlora::METHOD,
    &vblora::METHOD,
    &fourierft::METHOD,
    &waveft::METHOD,
    &c3a::METHOD,
    &road::METHOD,
    &delora::METHOD,
    &gralora::METHOD,
    &hira::METHOD,
    &unilora::METHOD,
    &supertuning::METHOD,
    &deft::METHOD,
    &peanut::METHOD,
    &glora::METHOD,
    &beft::METHOD,
    &tinylora::METHOD,
    &osf::METHOD,
    &frod::METHOD,
    &adamss::METHOD,
];

const VIRTUAL_TOKENS: &str = "it adds virtual tokens to the input, which no weight of the model can hold";

/// Methods that cannot become weights, or not from what is in their files, and why.
const NOT_WEIGHTS: &[KnownMethod] = &[
    not_weights("PROMPT_TUNING", "prompt tuning", "Lester et al. 2021", VIRTUAL_TOKENS),
    not_weights("MULTITASK_PROMPT_TUNING", "multitask prompt tuning", "Wang et al. 2023", VIRTUAL_TOKENS),
    not_weights("P_TUNING", "P-tuning", "Liu et al. 2021", VIRTUAL_TOKENS),
    not_weights(
        "PREFIX_TUNING",
        "prefix tuning",
        "Li and Liang 2021",
        "it adds keys and values to the attention's cache, which no weight of the model can hold",
    ),
    not_weights("CPT", "context-aware prompt tuning", "Blau et al. 2024", VIRTUAL_TOKENS),
    not_weights(
        "ADAPTION_PROMPT",
        "LLaMA-Adapter",
        "Zhang et al. 2023",
        "it adds gated prompts to the attention, which no weight of the model can hold",
    ),
    not_weights(
        "XLORA",
        "X-LoRA",
        "Buehler and Buehler 2024",
        "it mixes adapters anew for every token, so no fixed weights equal it",
    ),
    not_weights(
        "POLY",
        "Polytropon",
        "Ponti et al. 2022",
        "it mixes adapters by task, so no one set of weights equals it",
    ),
    not_weights(
        "LILY",
        "Lily",
        "Zhong et al. 2024",
        "it mixes its matrices by what a router makes of the input, so no fixed weights equal it",
    ),
    not_weights(
        "SHADOW",
        "ShadowPEFT",
        "PEFT, `tuners/shadow`",
        "it runs a small model beside the large one, which no weight of the latter can hold",
    ),
    not_weights(
        "CARTRIDGE",
        "Cartridges",
        "Eyuboglu et al. 2025",
        "it adds keys and values to the attention's cache, which no weight of the model can hold",
    ),
    not_weights(
        "PSOFT",
        "PSOFT",
        "PEFT, `tuners/psoft`",
        "it turns the base's own singular vectors, whose signs are not in the adapter and depend on the library that \
         computed them; merge it with PEFT on the machine that trained it",
    ),
];

const fn not_weights(
    peft_type: &'static str,
    name: &'static str,
    source: &'static str,
    why: &'static str,
) -> KnownMethod {
    KnownMethod { peft_type, name, formula: "", source, merging: Merging::NotWeights(why) }
}

/// The method that the configuration names.
pub(crate) fn of(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    let peft_type = config.peft_type()?;
    if peft_type == delta::FULL_DELTA {
        return Ok(Box::new(delta::Delta));
    }
    let cannot = |why: String| Error::Method { path: config.path().into(), peft_type: peft_type.into(), why };
    match methods().find(|known| known.peft_type == peft_type).map(|known| &known.merging) {
        Some(Merging::Reads(read)) => read(config),
        Some(Merging::NotWeights(why)) => Err(cannot((*why).into())),
        None => {
            let known: Vec<_> = METHODS.iter().map(|known| known.peft_type).collect();
            Err(cannot(format!("Tenon knows {}", known.join(", "))))
        }
    }
}
