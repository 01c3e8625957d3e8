//! Tensors that an adapter holds whole beside its method's own: `modules_to_save`,
//! biases, grown embeddings, trained tokens.

use serde_json::Value;
use tenon_checkpoint::{Dtype, TensorInfo};

use crate::edit::ReplaceRows;
use crate::planner::{Origin, Planner, Slot};
use crate::tying::is_output_head;
use crate::{AdapterConfig, Error};

/// What a tensor that is not the method's own is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Saved {
    /// Takes the place of a base tensor of this name, or is added.
    Whole(String),
    /// Rows of the embedding of this module.
    Tokens(String),
    /// What no merged model needs: the untrained original beside a trained copy, which old PEFT versions
    /// saved too, or the state of a sampler that trained the factors.
    Unused,
}

/// Reads the name of a tensor that is not the method's own, its prefix taken off.
pub(crate) fn classify(name: &str) -> Saved {
    let parts: Vec<&str> = name.split('.').collect();
    // MonteCLoRA's noise and VeLoRA's projection act on training alone.
    let unused = ["original_module", "lora_monteclora_sampler", "lora_velora_embed"];
    if parts.iter().any(|part| unused.contains(part)) {
        return Saved::Unused;
    }
    if let Some(at) = parts.iter().position(|p| *p == "token_adapter")
        && parts.get(at + 1) == Some(&"trainable_tokens_delta")
    {
        return Saved::Tokens(parts[..at].join("."));
    }
    if let Some(at) = parts.iter().position(|p| p.starts_with("trainable_tokens_delta")) {
        return Saved::Tokens(parts[..at].join("."));
    }
    if parts.iter().any(|p| p.starts_with("trainable_tokens_original")) {
        return Saved::Unused;
    }
    let mut kept = Vec::with_capacity(parts.len());
    let mut parts = parts.into_iter().peekable();
    while let Some(part) = parts.next() {
        match part {
            "base_layer" | "token_adapter" => {}
            // The wrapper's own name and, in raw state dicts, the adapter's. LN tuning keeps a trained
            // copy of each module that it adapts.
            "modules_to_save" | "ln_tuning_layers" => {
                if parts.peek() == Some(&"default") {
                    parts.next();
                }
            }
            other => kept.push(other),
        }
    }
    Saved::Whole(kept.join("."))
}

/// Puts an adapter's whole tensor into the plan.
pub(crate) fn replace(planner: &mut Planner<'_>, tensor: usize, name: &str) -> Result<(), Error> {
    let info = planner.adapter.tensors()[tensor].clone();
    let home = match planner.resolve(tensor, name) {
        Err(error @ Error::NoHome { .. }) if !planner.parts_tied() => planner.tied_to(name).ok_or(error),
        other => other,
    };
    match home {
        Ok(slot) => {
            planner.check_editable(slot)?;
            if !info.dtype.is_editable() {
                return Err(Error::AdapterDtype { tensor: info.name, dtype: info.dtype.name() });
            }
            if planner.slots[slot].info.shape != info.shape {
                let from = planner.slots[slot].info.shape.first().copied().unwrap_or(0);
                grow(planner, tensor, slot, &info, |name, to| {
                    format!(
                        "{name}: the vocabulary has {to} rows in the adapter, {from} in the base; the adapter's is taken"
                    )
                })?;
            }
            let slot = &mut planner.slots[slot];
            slot.origin = Origin::Adapter(tensor);
            slot.stored = info.dtype;
            slot.method = Some("saved whole");
            slot.info.shape = info.shape;
            Ok(())
        }
        Err(error @ Error::NoHome { .. }) => {
            let is_new = is_saved_module(planner, name) && !is_inside(planner, name);
            if is_new || is_head(name) || is_output_head(name) {
                add(planner, tensor, name, &info);
                Ok(())
            } else {
                Err(error)
            }
        }
        Err(error) => Err(error),
    }
}

/// Takes a tensor with more rows than the base's, if it is the embedding of a grown vocabulary. `note` says so
/// of a tensor's name and its new number of rows.
pub(crate) fn grow(
    planner: &mut Planner<'_>,
    tensor: usize,
    slot: usize,
    info: &TensorInfo,
    note: impl Fn(&str, u64) -> String,
) -> Result<(), Error> {
    let base = &planner.slots[slot].info;
    let vocabulary = planner.config_field("vocab_size").and_then(Value::as_u64);
    let grows = base.shape.len() == info.shape.len()
        && !info.shape.is_empty()
        && base.shape[1..] == info.shape[1..]
        && info.shape[0] > 0
        && vocabulary.is_some_and(|size| base.shape[0] >= size || info.shape[0] >= size)
        && is_vocabulary(&base.name);
    if !grows {
        let expected = format!("{:?}", base.shape);
        return Err(planner.shape_error(tensor, slot, expected));
    }
    let to = info.shape[0];
    let note = note(&base.name, to);
    planner.notes.push(note);
    planner.set_config("vocab_size", to.into());
    Ok(())
}

/// Adds a tensor that the base does not have, such as the head of a classifier.
fn add(planner: &mut Planner<'_>, tensor: usize, name: &str, info: &TensorInfo) {
    // As the rest of the model is stored, where that is a type of its own kind.
    let common = planner.slots.iter().filter(|s| s.info.dtype.is_editable()).max_by_key(|s| s.info.bytes());
    let dtype = match common {
        Some(slot) if info.dtype.is_editable() => slot.info.narrow.unwrap_or(slot.info.dtype),
        _ => info.dtype,
    };
    planner.names.insert(name);
    planner.slots.push(Slot {
        info: TensorInfo::new(name, dtype, info.shape.clone()),
        origin: Origin::Adapter(tensor),
        stored: info.dtype,
        edits: vec![],
        method: Some("saved whole"),
        new: true,
    });
}

/// Whether `modules_to_save` names the module of this tensor.
fn is_saved_module(planner: &Planner<'_>, name: &str) -> bool {
    let saved = planner.adapter.config().texts("modules_to_save").unwrap_or_default();
    name.split('.').any(|part| saved.contains(&part))
        || saved.iter().any(|s| name.starts_with(&format!("{s}.")))
}

/// Whether a name is of something inside the model that the base holds: in one of its layers, or in a part
/// of which the base has others. Such a tensor is none that a task adds beside the model; the base has it
/// under another name, or has it not.
fn is_inside(planner: &Planner<'_>, name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    let lists = ["layers", "layer", "h", "block", "blocks"];
    let in_layer = parts.windows(2).any(|pair| lists.contains(&pair[0]) && pair[1].parse::<u64>().is_ok());
    let front = format!("{}.", parts[0]);
    in_layer || planner.base_infos.iter().any(|info| info.name.starts_with(&front))
}

/// Names of heads that PEFT saves for a task although `modules_to_save` may not list them.
fn is_head(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    ["score", "classifier", "qa_outputs", "lm_head"].contains(&first)
}

/// Whether a tensor that the adapter holds whole is the base's own: PEFT saves an embedding or head that it
/// adapts beside its factors, unless it was trained itself.
pub(crate) fn is_the_bases(config: &AdapterConfig, name: &str) -> bool {
    let trained = config.texts("modules_to_save").unwrap_or_default();
    is_vocabulary(name) && !name.split('.').any(|part| trained.contains(&part))
}

/// Whether this is a tensor of an embedding or an output head, with a row for each token.
fn is_vocabulary(name: &str) -> bool {
    let module = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
    let last = module.rsplit('.').next().unwrap_or_default();
    [
        "embed_tokens",
        "lm_head",
        "wte",
        "word_embeddings",
        "embed_in",
        "embed_out",
        "shared",
        "tok_embeddings",
        "output",
        "embeddings",
        "embedding",
        "decoder",
    ]
    .contains(&last)
}

/// Puts trained rows into an embedding.
pub(crate) fn replace_tokens(
    planner: &mut Planner<'_>,
    tensor: usize,
    module: &str,
    indices: Vec<u64>,
) -> Result<(), Error> {
    let wanted = format!("{module}.weight");
    // A tied head shares the embedding's rows; PEFT saves them under both names.
    let slot = match planner.resolve(tensor, &wanted) {
        Err(error @ Error::NoHome { .. }) => planner.tied_to(&wanted).ok_or(error)?,
        other => other?,
    };
    planner.check_editable(slot)?;
    let base = planner.slots[slot].info.clone();
    let shape = planner.adapter_shape(tensor);
    if base.shape.len() != 2 || shape != [indices.len() as u64, base.shape[1]] {
        let expected = format!("[{}, {}]", indices.len(), base.shape.last().copied().unwrap_or(0));
        return Err(planner.shape_error(tensor, slot, expected));
    }
    let mut rows: Vec<_> = indices.into_iter().zip(0..).collect();
    rows.sort_unstable();
    if let Some((row, _)) = rows.last().filter(|(row, _)| *row >= base.shape[0]) {
        let expected = format!("token numbers below {}", base.shape[0]);
        return Err(Error::Field {
            path: planner.adapter.config().path().into(),
            field: "trainable_token_indices".into(),
            found: row.to_string(),
            expected,
        });
    }
    planner.edit(slot, "trained tokens", ReplaceRows { rows, tensor });
    Ok(())
}

/// Whether an output dtype may stand for a stored one.
pub(crate) fn cast(stored: Dtype, wanted: Option<Dtype>) -> Dtype {
    match wanted {
        Some(dtype) if stored.is_editable() => dtype,
        _ => stored,
    }
}
