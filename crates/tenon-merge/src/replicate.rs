//! `layer_replication`: a model whose layers are repeated, each copy adapted on its own.

use serde_json::Value;
use tenon_checkpoint::TensorInfo;

use crate::Error;
use crate::naming::Names;
use crate::planner::{Planner, Slot};

/// Rebuilds the plan's layers as the configuration's `layer_replication` says: for each
/// `[start, end)` in turn, copies of those layers.
pub(crate) fn replicate(planner: &mut Planner<'_>) -> Result<(), Error> {
    let Some(value) = planner.adapter.config().value("layer_replication") else { return Ok(()) };
    let wrong =
        || planner.adapter.config().wrong("layer_replication", "a list of [start, end] pairs of layers");
    let ranges: Vec<(usize, usize)> = serde_json::from_value(value.clone()).map_err(|_| wrong())?;
    let prefix = layer_list(&planner.slots)
        .ok_or_else(|| Error::Layers("layer_replication: the base has no list of layers".into()))?;
    let number = |slot: &Slot| layer_number(&slot.info.name, &prefix);
    let count = planner.slots.iter().filter_map(number).max().map_or(0, |n| n + 1);
    if ranges.iter().any(|(start, end)| start >= end || *end > count) || ranges.is_empty() {
        return Err(Error::Layers(format!(
            "layer_replication is {ranges:?}, but the base has the layers 0 to {}",
            count.saturating_sub(1)
        )));
    }
    let order: Vec<usize> = ranges.iter().flat_map(|(start, end)| *start..*end).collect();
    // A plan of a million copies would be somebody's joke.
    if order.len() > 100_000 {
        return Err(Error::Layers(format!("layer_replication asks for {} layers", order.len())));
    }
    let mut slots = Vec::new();
    let mut placed = false;
    for slot in &planner.slots {
        if number(slot).is_none() {
            slots.push(slot.clone());
        } else if !placed {
            placed = true;
            for (new, old) in order.iter().enumerate() {
                for slot in planner.slots.iter().filter(|slot| number(slot) == Some(*old)) {
                    let rest = &slot.info.name[prefix.len() + old.to_string().len()..];
                    let name = format!("{prefix}{new}{rest}");
                    let info = TensorInfo { name, ..slot.info.clone() };
                    slots.push(Slot { info, ..slot.clone() });
                }
            }
        }
    }
    planner.slots = slots;
    planner.names = Names::new(planner.slots.iter().map(|slot| slot.info.name.as_str()));
    for field in ["num_hidden_layers", "n_layer", "num_layers"] {
        if planner.config_field(field).is_some() {
            planner.set_config(field, order.len().into());
        }
    }
    // Lists with an entry a layer, such as layer_types.
    if let Some(Value::Array(types)) = planner.config_field("layer_types").cloned()
        && types.len() == count
    {
        planner.set_config("layer_types", order.iter().map(|old| types[*old].clone()).collect());
    }
    planner.notes.push(format!("layer_replication: {count} layers become {}", order.len()));
    Ok(())
}

/// What stands before the layers' numbers, such as `model.layers.`: the list with the most tensors.
fn layer_list(slots: &[Slot]) -> Option<String> {
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for slot in slots {
        for list in ["layers.", "encoder.layer.", "h."] {
            let name = &slot.info.name;
            let at = name.find(list).filter(|at| *at == 0 || name.as_bytes()[at - 1] == b'.');
            if let Some(at) = at {
                let prefix = &name[..at + list.len()];
                if layer_number(name, prefix).is_some() {
                    *counts.entry(prefix).or_default() += 1;
                    break;
                }
            }
        }
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(prefix, _)| prefix.to_string())
}

fn layer_number(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}
