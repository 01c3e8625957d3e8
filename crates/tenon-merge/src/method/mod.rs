//! The methods that Tenon merges, one file each.
//!
//! To add one: write its file, with a type that implements [`Method`], and
//! add a line to [`METHODS`].

pub(crate) mod lora;

use std::collections::BTreeMap;
use std::fmt;

use crate::planner::Planner;
use crate::{AdapterConfig, Error};

/// One way to adapt a model: which tensors it writes and which edits they make.
pub(crate) trait Method: fmt::Debug {
    /// The names by which its tensors are known: the component after the module's path.
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

type Reader = fn(&AdapterConfig) -> Result<Box<dyn Method>, Error>;

/// By `peft_type`: how a method reads its configuration.
const METHODS: &[(&str, Reader)] = &[("LORA", lora::read)];

/// Methods that cannot become weights, and why.
const NOT_WEIGHTS: &[(&str, &str)] = &[
    ("PROMPT_TUNING", "it adds virtual tokens to the input, which no weight of the model can hold"),
    ("MULTITASK_PROMPT_TUNING", "it adds virtual tokens to the input, which no weight of the model can hold"),
    ("P_TUNING", "it adds virtual tokens to the input, which no weight of the model can hold"),
    (
        "PREFIX_TUNING",
        "it adds keys and values to the attention's cache, which no weight of the model can hold",
    ),
    ("CPT", "it adds virtual tokens to the input, which no weight of the model can hold"),
    ("ADAPTION_PROMPT", "it adds gated prompts to the attention, which no weight of the model can hold"),
    ("XLORA", "it mixes adapters anew for every token, so no fixed weights equal it"),
    ("POLY", "it mixes adapters by task, so no one set of weights equals it"),
];

/// The method that the configuration names.
pub(crate) fn of(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    let peft_type = config.peft_type()?;
    let cannot = |why: String| Error::Method { path: config.path().into(), peft_type: peft_type.into(), why };
    if let Some((_, read)) = METHODS.iter().find(|(name, _)| *name == peft_type) {
        return read(config);
    }
    if let Some((_, why)) = NOT_WEIGHTS.iter().find(|(name, _)| *name == peft_type) {
        return Err(cannot((*why).into()));
    }
    let known: Vec<_> = METHODS.iter().map(|(name, _)| *name).collect();
    Err(cannot(format!("Tenon knows {}", known.join(", "))))
}
