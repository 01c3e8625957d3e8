//! Joins a base and an adapter into a plan, finding every mistake on the way.
//!
//! Only headers are read. What comes out is a [`TensorSource`]; see
//! `stream.rs` for how it is evaluated.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tenon_checkpoint::{Dtype, TensorInfo, TensorSource};

use crate::kernel::Level;
use crate::measure::{Measuring, TensorMeasure};
use crate::method::{self, Module};
use crate::naming::Names;
use crate::planner::{Origin, Planner, Slot};
use crate::saved::{self, Saved};
use crate::stream::{PREPARED, PreparedCache};
use crate::tying::is_output_head;
use crate::weight::{self, Weighted};
use crate::{Adapter, Error, replicate};

/// The element type of the merged weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputDtype {
    /// That of the base, tensor by tensor.
    #[default]
    Auto,
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// bfloat16.
    Bf16,
}

impl OutputDtype {
    fn wanted(self) -> Option<Dtype> {
        match self {
            OutputDtype::Auto => None,
            OutputDtype::F32 => Some(Dtype::F32),
            OutputDtype::F16 => Some(Dtype::F16),
            OutputDtype::Bf16 => Some(Dtype::BF16),
        }
    }
}

/// How to merge.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// Element type of the output.
    pub dtype: OutputDtype,
    /// Whether values that are not finite may come out.
    pub allow_non_finite: bool,
    /// Instructions to use. The bytes are the same for each.
    pub level: Level,
    /// Whether to measure what is done to each tensor; see [`MergePlan::measure`].
    pub measure: bool,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { dtype: OutputDtype::Auto, allow_non_finite: false, level: Level::detect(), measure: false }
    }
}

/// What happens to a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// The base's bytes as they are.
    Copied,
    /// The base's values in another element type.
    Converted,
    /// The base's values, edited by a method.
    Edited,
    /// The adapter's own tensor in place of the base's.
    Replaced,
    /// A tensor that the base does not have.
    Added,
}

/// One tensor of a plan, for people and manifests.
#[derive(Debug, Clone)]
pub struct PlannedTensor<'a> {
    /// Name, dtype and shape of the output.
    pub info: &'a TensorInfo,
    /// What happens to it.
    pub fate: Fate,
    /// The methods that edit it, such as `DoRA`: one for each adapter that does, in their order.
    pub methods: Vec<&'static str>,
}

/// A base and an adapter, joined: every output tensor with the edits that make it.
///
/// A plan is a [`TensorSource`]. Reading its rows reads the base's, applies the
/// edits in `f64`, and rounds once.
pub struct MergePlan {
    pub(crate) base: Arc<dyn TensorSource>,
    pub(crate) adapter: Arc<Adapter>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) options: MergeOptions,
    pub(crate) prepared: Mutex<PreparedCache>,
    pub(crate) measuring: Option<Measuring>,
    /// The plan of the adapters merged before this one.
    pub(crate) below: Option<Arc<MergePlan>>,
    config: Value,
    notes: Vec<String>,
}

/// Where a plan stands among those of several adapters.
pub(crate) struct Stage {
    /// How much of what the adapter adds is added.
    pub(crate) weight: f64,
    pub(crate) below: Option<Arc<MergePlan>>,
    /// Whether the result is rounded.
    pub(crate) is_last: bool,
}

impl MergePlan {
    /// Plans the merge of `adapter` into `base`, whose `config.json` is `config`. Reads no tensor.
    pub fn new(
        base: Arc<dyn TensorSource>,
        config: &Value,
        adapter: Arc<Adapter>,
        options: MergeOptions,
    ) -> Result<Self, Error> {
        let alone = Stage { weight: 1.0, below: None, is_last: true };
        Self::stage(base, config, adapter, options, alone)
    }

    pub(crate) fn stage(
        base: Arc<dyn TensorSource>,
        config: &Value,
        adapter: Arc<Adapter>,
        mut options: MergeOptions,
        stage: Stage,
    ) -> Result<Self, Error> {
        let Stage { weight, below, is_last } = stage;
        options.measure &= is_last;
        let method = method::of(adapter.config())?;
        if adapter.tensors().is_empty() {
            return Err(Error::Empty);
        }
        let slot = |(index, info): (usize, &TensorInfo)| Slot {
            info: info.clone(),
            origin: Origin::Base(index),
            stored: info.dtype,
            edits: vec![],
            method: None,
            new: false,
        };
        let slots: Vec<Slot> = base.tensors().iter().enumerate().map(slot).collect();
        let names = Names::new(slots.iter().map(|slot| slot.info.name.as_str()));
        let mut planner = Planner {
            adapter: &adapter,
            base_infos: base.tensors(),
            slots,
            names,
            config: config.clone(),
            notes: vec![],
            prefix: None,
        };
        replicate::replicate(&mut planner)?;
        let sorted = sort_tensors(&adapter, method.parameters())?;
        if weight != 1.0 {
            weight::check(&adapter, weight, &sorted)?;
        }
        // Whole tensors first: a grown embedding must have its shape before LoRA is added to it.
        for (tensor, name) in &sorted.whole {
            saved::replace(&mut planner, *tensor, name)?;
        }
        for (tensor, module) in &sorted.tokens {
            let indices = token_indices(&adapter, module)?;
            saved::replace_tokens(&mut planner, *tensor, module, indices)?;
        }
        planner.untie();
        method.plan(&sorted.modules, &mut planner)?;
        if weight != 1.0 {
            for edit in planner.slots.iter_mut().flat_map(|slot| &mut slot.edits) {
                *edit = Arc::new(Weighted { edit: edit.clone(), weight });
            }
            for slot in &mut planner.slots {
                if let Origin::Sum { scale, .. } = &mut slot.origin {
                    *scale = weight;
                }
            }
        }
        planner.settle_tying();
        planner.settle_task();
        if is_last {
            planner.settle_dtype(options.dtype.wanted());
        } else {
            planner.keep_exact();
        }
        planner.note_held();
        let Planner { slots, config, notes: own_notes, .. } = planner;
        let mut notes = below.as_ref().map_or(vec![], |plan| plan.notes.clone());
        notes.extend(own_notes);
        let infos = slots.iter().map(|slot| slot.info.clone()).collect();
        let measuring = options.measure.then(Measuring::default);
        let prepared = Mutex::default();
        Ok(Self { base, adapter, slots, infos, options, prepared, measuring, below, config, notes })
    }

    /// The output's `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// What a person should know before relying on the result.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The adapter that is merged; the last of several.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// The adapter's method as people call it, such as `rsLoRA`; its `peft_type` where it edits nothing.
    pub fn method(&self) -> &str {
        let is_sum = |slot: &Slot| matches!(slot.origin, Origin::Sum { .. });
        let edited = self.slots.iter().filter(|slot| !slot.edits.is_empty() || is_sum(slot));
        let named = edited.map(|slot| slot.method).next().flatten();
        named.unwrap_or_else(|| self.adapter.config().peft_type().unwrap_or_default())
    }

    /// Bytes that edits hold at most while the plan is read, beside tiles and the adapter's factors.
    pub fn held_bytes(&self) -> u64 {
        let below = self.below.as_ref().map_or(0, |plan| plan.held_bytes());
        held_bytes(&self.slots).saturating_add(below)
    }

    /// How far edits moved a tensor, once each of its rows was read, and read once, with
    /// [`MergeOptions::measure`] set. Nothing for a tensor without edits. Of several adapters, what the
    /// last one did.
    pub fn measure(&self, tensor: usize) -> Option<TensorMeasure> {
        let info = &self.slots[tensor].info;
        let elements = info.shape.iter().product();
        self.measuring.as_ref()?.of(tensor, info.rows() / info.row_block.max(1), &info.name, elements)
    }

    /// All output tensors and what happens to each.
    pub fn planned(&self) -> impl Iterator<Item = PlannedTensor<'_>> {
        self.slots.iter().map(|slot| PlannedTensor {
            info: &slot.info,
            fate: self.fate(slot),
            methods: self.methods(slot),
        })
    }
}

/// What the tensors prepared at one time hold at most.
fn held_bytes(slots: &[Slot]) -> u64 {
    let mut held: Vec<u64> = slots
        .iter()
        .map(|slot| slot.edits.iter().map(|e| e.held_bytes()).fold(0, u64::saturating_add))
        .collect();
    held.sort_unstable_by(|a, b| b.cmp(a));
    // One more than are kept: the thread that used the oldest may not be done with it.
    held.into_iter().take(PREPARED + 1).fold(0, u64::saturating_add)
}

/// An adapter's tensors by what they are.
#[derive(Default)]
pub(crate) struct Sorted {
    pub(crate) modules: Vec<Module>,
    pub(crate) whole: Vec<(usize, String)>,
    pub(crate) tokens: Vec<(usize, String)>,
}

/// Sorts an adapter's tensors; `parameters` are its method's own.
pub(crate) fn sort_tensors(adapter: &Adapter, parameters: &[&str]) -> Result<Sorted, Error> {
    let mut sorted = Sorted::default();
    let mut modules: BTreeMap<(String, usize), Module> = BTreeMap::new();
    for (tensor, info) in adapter.tensors().iter().enumerate() {
        let name = info.name.strip_prefix("base_model.model.").unwrap_or(&info.name);
        if let Some((path, parameter)) = split_parameter(name, parameters) {
            let path = path.strip_prefix("base_model.model.").unwrap_or(path);
            let mut path = path.to_string();
            let mut depth = 0;
            while let Some(outer) = path.strip_suffix(".base_layer") {
                path = outer.to_string();
                depth += 1;
            }
            let module = modules.entry((path.clone(), depth)).or_default();
            (module.path, module.depth) = (path, depth);
            if let Some(other) = module.tensors.insert(parameter, tensor) {
                let (first, second) = (&adapter.tensors()[other].name, &info.name);
                return Err(Error::Twice { first: first.clone(), second: second.clone() });
            }
            continue;
        }
        match saved::classify(name) {
            Saved::Whole(name) => sorted.whole.push((tensor, name)),
            Saved::Tokens(module) => sorted.tokens.push((tensor, module)),
            Saved::Unused => {}
        }
    }
    sorted.modules = modules.into_values().collect();
    // As models list their modules, which is the order that PEFT merges them in: it counts where both
    // change the one tensor of tied embeddings.
    sorted.modules.sort_by_key(|module| is_output_head(&format!("{}.weight", module.path)));
    sorted.whole.sort_by_key(|(_, name)| is_output_head(name));
    sorted.tokens.sort_by_key(|(_, module)| is_output_head(&format!("{module}.weight")));
    Ok(sorted)
}

/// Splits a tensor's name into its module and one of the method's parameters.
///
/// What may follow the parameter: nothing, `weight`, `bias`, or the adapter's
/// name and then one of these, as raw state dicts have it.
fn split_parameter<'a>(name: &'a str, parameters: &[&str]) -> Option<(&'a str, String)> {
    let mut end = name.len();
    loop {
        let start = name[..end].rfind('.')?;
        let part = &name[start + 1..end];
        if parameters.contains(&part) {
            let rest: Vec<&str> = name[end..].split('.').skip(1).collect();
            let bias = match rest[..] {
                [] | ["weight"] | [_, "weight"] => false,
                ["bias"] | [_, "bias"] => true,
                [_] => false,
                _ => return None,
            };
            let parameter = if bias { format!("{part}.bias") } else { part.to_string() };
            return Some((&name[..start], parameter));
        }
        if parameters.iter().any(|p| p.strip_suffix(".*") == Some(part)) {
            let mut rest = name[end..].split('.').skip(1);
            let first = rest.next()?;
            return rest.all(|part| part == "weight").then(|| (&name[..start], format!("{part}.{first}")));
        }
        end = start;
    }
}

/// The token numbers that `trainable_token_indices` gives for a module.
fn token_indices(adapter: &Adapter, module: &str) -> Result<Vec<u64>, Error> {
    let config = adapter.config();
    let field = ["trainable_token_indices", "token_indices"].into_iter().find(|f| config.value(f).is_some());
    let field = field.unwrap_or("trainable_token_indices");
    let wrong = || config.wrong(field, "token numbers, or an object from modules to them");
    let value = config.value(field).ok_or_else(wrong)?;
    let list = match value {
        Value::Object(by_module) => {
            let belongs = |key: &String| module == key || module.ends_with(&format!(".{key}"));
            // A head tied to the embedding shares its entry.
            let mut entries = by_module.iter();
            entries
                .find(|(key, _)| belongs(key))
                .or_else(|| by_module.iter().next())
                .map(|(_, v)| v)
                .ok_or_else(wrong)?
        }
        other => other,
    };
    list.as_array().ok_or_else(wrong)?.iter().map(|v| v.as_u64().ok_or_else(wrong)).collect()
}

impl Planner<'_> {
    /// Says what memory a method needs that cannot work tile by tile.
    fn note_held(&mut self) {
        let held = held_bytes(&self.slots);
        // Below what tiles take, nobody needs to know.
        if held > 64 << 20 {
            let holds = |slot: &&Slot| slot.edits.iter().any(|edit| edit.held_bytes() > 0);
            let tensors = self.slots.iter().filter(holds).count();
            self.notes.push(format!(
                "the updates of {tensors} tensors are computed in whole before they are added: up to {} MiB of memory",
                held >> 20
            ));
        }
    }

    /// Has what is changed yielded in `f64`, for the next adapter to change it further; the type that it
    /// is to be rounded to is kept beside it.
    fn keep_exact(&mut self) {
        for slot in &mut self.slots {
            if !slot.edits.is_empty() || slot.stored != slot.info.dtype {
                slot.info.narrow = slot.info.narrow.or(Some(slot.info.dtype));
                slot.info.dtype = Dtype::F64;
            }
        }
    }

    /// Settles each tensor's output dtype, and the configuration's.
    fn settle_dtype(&mut self, wanted: Option<Dtype>) {
        for slot in &mut self.slots {
            let narrow = slot.info.narrow.take();
            slot.info.dtype = saved::cast(slot.info.dtype, wanted.or(narrow));
        }
        if let Some(name) = wanted.and_then(Dtype::torch_name) {
            let field = if self.config_field("dtype").is_some() { "dtype" } else { "torch_dtype" };
            self.set_config(field, name.into());
        }
    }
}
