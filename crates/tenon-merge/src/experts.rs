//! LoRA on the experts of a mixture, which a model holds fused in memory and a
//! checkpoint may store one by one.
//!
//! `target_parameters` names fused parameters such as `mlp.experts.gate_up_proj`.
//! With `E` experts and rank `r`, `A` is `[E * r, in]`, expert by expert, and
//! `B` is `[out, r * E]`, the expert counting fastest. Expert `e` gets
//! `s * sum_k B[o, k * E + e] A[e * r + k, i]` (PEFT 0.21.2, `ParamWrapper.get_delta_weight`).
//! Where several parameters of one module are adapted, their wrappers nest:
//! the one declared first in the model is innermost, `base_layer.` once for
//! every wrapper around it.

use tenon_checkpoint::TensorInfo;

use crate::Error;
use crate::edit::{Factor, LowRank};
use crate::method::Module;
use crate::method::lora::Lora;
use crate::planner::Planner;

/// Where the base stores a fused parameter.
#[derive(Debug)]
enum Home {
    /// As one tensor, `[E, rows, cols]` or `[rows, cols]`.
    Fused(usize),
    /// By expert; each a list of tensors `[out of this part, in]` that follow each other along `out`.
    ByExpert(Vec<Vec<usize>>),
}

/// Shapes of a parameter: experts, outputs, inputs, and whether it is stored `[E, in, out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    experts: u64,
    out: u64,
    input: u64,
    transposed: bool,
}

/// Plans all adapted parameters of one module; `layers` are its wrappers, innermost first.
pub(crate) fn plan(
    lora: &Lora,
    path: &str,
    parameters: &[&str],
    layers: &[&Module],
    planner: &mut Planner<'_>,
) -> Result<(), Error> {
    let mut order = parameters.to_vec();
    order.sort_by_key(|name| declared(name));
    order.dedup();
    let first = layers.first().and_then(|l| l.tensors.values().next().copied()).unwrap_or_default();
    if layers.len() > order.len() {
        return Err(Error::MissingPartner {
            tensor: planner.adapter_name(first).into(),
            missing: format!("a target_parameters entry for each of the {} wrappers of {path}", layers.len()),
        });
    }
    let mut homes = Vec::new();
    for parameter in &order {
        homes.push(find_home(path, parameter, first, planner));
    }
    // The declared order fits nearly always; shapes tell where a model declares otherwise.
    let mut fitting = arrangements(order.len(), layers.len()).into_iter().filter(|choice| {
        choice.iter().zip(layers).all(|(&p, layer)| {
            homes[p].as_ref().is_ok_and(|home| fits(lora, path, order[p], layer, home, planner).is_ok())
        })
    });
    let assignment = fitting.next().unwrap_or_else(|| (0..layers.len()).collect());
    // Where the order of declaration is not known, another that fits as well may be the right one.
    let is_unknown = |p: usize| declared(order[p]) == DECLARED.len();
    let differ = |other: &Vec<usize>| other.iter().zip(&assignment).any(|(a, b)| a != b && is_unknown(*b));
    if let Some(other) = fitting.find(differ) {
        let names = |choice: &[usize]| Vec::from_iter(choice.iter().map(|p| order[*p])).join(", ");
        return Err(planner.adapter.config().not_understood(
            "target_parameters",
            format!(
                "the parameters of {path} are of one shape, and nothing tells whether their factors are those of {} \
                 or of {}, in this order; adapters of one parameter each can be merged one after the other",
                names(&assignment),
                names(&other)
            ),
        ));
    }
    drop(fitting);
    let mut homes: Vec<_> = homes.into_iter().map(Some).collect();
    for (&p, layer) in assignment.iter().zip(layers) {
        let home = homes[p].take().expect("an arrangement names each parameter once")?;
        attach(lora, path, order[p], layer, &home, planner)?;
    }
    Ok(())
}

/// Rank of a parameter in its module's declaration: what goes in stands before what comes out.
fn declared(name: &str) -> usize {
    DECLARED.iter().position(|known| *known == name).unwrap_or(DECLARED.len())
}

const DECLARED: [&str; 7] = ["gate_up_proj", "gate_proj", "w1", "up_proj", "w3", "down_proj", "w2"];

/// All ways to choose `k` of `n` in order, the plain one first.
fn arrangements(n: usize, k: usize) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for _ in 0..k {
        all = all
            .into_iter()
            .flat_map(|chosen: Vec<usize>| {
                (0..n)
                    .filter(|i| !chosen.contains(i))
                    .map(|i| [&chosen[..], &[i]].concat())
                    .collect::<Vec<_>>()
            })
            .collect();
        // Modules have two or three parameters; more would make this explode.
        all.truncate(1000);
    }
    all
}

fn find_home(path: &str, parameter: &str, tensor: usize, planner: &Planner<'_>) -> Result<Home, Error> {
    let wanted = format!("{path}.{parameter}");
    let names = &planner.names;
    for candidate in [wanted.clone(), format!("{wanted}.weight")] {
        if let Some(slot) = names.find(&candidate) {
            return Ok(Home::Fused(slot));
        }
    }
    let parts: &[&[&str]] = match parameter {
        "gate_up_proj" => &[&["gate_proj", "w1"], &["up_proj", "w3"]],
        "down_proj" => &[&["down_proj", "w2"]],
        // Experts without a gate.
        "up_proj" => &[&["up_proj"]],
        _ => &[],
    };
    let prefix = expert_prefix(path, planner);
    let mut experts = Vec::new();
    if let (Some(prefix), false) = (&prefix, parts.is_empty()) {
        while let Some(tensors) = parts
            .iter()
            .map(|spellings| {
                let name = |part: &&str| names.exact(&format!("{prefix}{}.{part}.weight", experts.len()));
                spellings.iter().find_map(name)
            })
            .collect::<Option<Vec<_>>>()
        {
            experts.push(tensors);
        }
    }
    if experts.is_empty() {
        planner.look_up(tensor, &wanted).map(Home::Fused)
    } else {
        Ok(Home::ByExpert(experts))
    }
}

/// What stands before the experts' numbers in the checkpoint. The module around them may have
/// another name there (`block_sparse_moe` for `mlp`), and the model other wrappers, but it is in the
/// same layer.
fn expert_prefix(path: &str, planner: &Planner<'_>) -> Option<String> {
    let direct = format!("{path}.");
    let has_expert_0 = |prefix: &str| {
        let start = format!("{prefix}0.");
        planner.slots.iter().any(|slot| slot.info.name.starts_with(&start))
    };
    if has_expert_0(&direct) {
        return Some(direct);
    }
    let parts: Vec<&str> = path.split('.').collect();
    let (number, last) = (parts.iter().position(|part| part.parse::<u64>().is_ok())?, parts.last()?);
    // `layers.3.`
    let layer = format!(".{}.{}.", parts[number.checked_sub(1)?], parts[number]);
    let marker = format!(".{last}.0.");
    let inside = |slot: &crate::planner::Slot| {
        let name = format!(".{}", slot.info.name);
        let layer_end = name.find(&layer)? + layer.len() - 1;
        let at = layer_end + name[layer_end..].find(&marker)? + marker.len() - 2;
        Some(name[1..at].to_string())
    };
    let mut prefixes = planner.slots.iter().filter_map(inside);
    let first = prefixes.next()?;
    // Two towers with experts of one name: neither is meant more than the other.
    prefixes.all(|other| other == first).then_some(first)
}

/// The extent of a parameter as a wrapper's factors and its home agree on it.
fn fits(
    lora: &Lora,
    path: &str,
    parameter: &str,
    layer: &Module,
    home: &Home,
    planner: &Planner<'_>,
) -> Result<(Extent, u64, f64), Error> {
    let a = layer.need("lora_A", planner)?;
    let b = layer.need("lora_B", planner)?;
    let slot = match home {
        Home::Fused(slot) => *slot,
        Home::ByExpert(experts) => experts[0][0],
    };
    let ([a_rows, input], [out, b_cols]) = (planner.adapter_shape(a), planner.adapter_shape(b)) else {
        return Err(planner.shape_error(a, slot, "factors of two dimensions".into()));
    };
    let (input, out) = (*input, *out);
    let info = |slot: usize| -> &TensorInfo { &planner.slots[slot].info };
    let extent = match home {
        Home::Fused(slot) => match info(*slot).shape[..] {
            [rows, cols] => Extent { experts: 1, out: rows, input: cols, transposed: false },
            [experts, rows, cols] => {
                let transposed = match ((out, input) == (rows, cols), (input, out) == (rows, cols)) {
                    (true, true) => is_transposed_family(planner.model_type()),
                    (_, transposed) => transposed,
                };
                let (out, input) = if transposed { (cols, rows) } else { (rows, cols) };
                Extent { experts, out, input, transposed }
            }
            _ => return Err(planner.shape_error(a, *slot, "a parameter of two or three dimensions".into())),
        },
        Home::ByExpert(experts) => {
            let shape = |slot: &usize| match info(*slot).shape[..] {
                [out, input] => Some((out, input)),
                _ => None,
            };
            let total = |parts: &Vec<usize>| {
                parts.iter().map(shape).try_fold((0, None), |(sum, width), part| {
                    let (out, input) = part?;
                    (width.is_none_or(|w| w == input)).then_some((sum + out, Some(input)))
                })
            };
            let first = total(&experts[0]);
            if !experts.iter().all(|parts| total(parts) == first) {
                return Err(planner.shape_error(a, slot, "experts of one shape".into()));
            }
            match first {
                Some((out, Some(input))) => {
                    Extent { experts: experts.len() as u64, out, input, transposed: false }
                }
                _ => return Err(planner.shape_error(a, slot, "experts of two dimensions".into())),
            }
        }
    };
    let parameter = format!("{path}.{parameter}");
    // A stored rank that the configuration does not allow fails below, with the one it asks for.
    let (rank, scale) = match lora.rank_and_scale(&parameter, *a_rows / extent.experts.max(1)) {
        Ok(found) => found,
        Err(wanted) => (wanted, 0.0),
    };
    let ranks = extent.experts.checked_mul(rank);
    if input != extent.input || Some(*a_rows) != ranks {
        let expected = format!("[{} experts x rank {rank}, {}]", extent.experts, extent.input);
        return Err(planner.shape_error(a, slot, expected));
    }
    if out != extent.out || Some(*b_cols) != ranks {
        let expected = format!("[{}, rank {rank} x {} experts]", extent.out, extent.experts);
        return Err(planner.shape_error(b, slot, expected));
    }
    Ok((extent, rank, scale))
}

/// Families whose experts PEFT takes as `[E, in, out]`, needed only where `in` equals `out`: those that
/// transformers marks so. Llama 4 keeps them so too, without the mark.
fn is_transposed_family(model_type: &str) -> bool {
    ["gpt_oss", "aria", "openai_privacy_filter"].iter().any(|family| model_type.starts_with(family))
}

fn attach(
    lora: &Lora,
    path: &str,
    parameter: &str,
    layer: &Module,
    home: &Home,
    planner: &mut Planner<'_>,
) -> Result<(), Error> {
    let (extent, rank, scale) = fits(lora, path, parameter, layer, home, planner)?;
    let (a, b) = (layer.need("lora_A", planner)?, layer.need("lora_B", planner)?);
    let exact = planner.is_narrow(a) && planner.is_narrow(b);
    let (rank, experts, input) = (rank as usize, extent.experts as usize, extent.input as usize);
    let of_b =
        Factor { tensor: b, offset: 0, group_stride: 1, outer_stride: rank * experts, rank_stride: experts };
    let of_a =
        Factor { tensor: a, offset: 0, group_stride: rank * input, outer_stride: 1, rank_stride: input };
    match home {
        Home::Fused(slot) => {
            planner.check_editable(*slot)?;
            let (left, right, rows, cols) = if extent.transposed {
                (of_a, of_b, extent.input, extent.out)
            } else {
                (of_b, of_a, extent.out, extent.input)
            };
            let edit = LowRank {
                left,
                right,
                rank,
                groups: experts,
                rows_per_group: rows as usize,
                cols: cols as usize,
                scale,
                exact,
            };
            planner.edit(*slot, lora.label(), edit);
        }
        Home::ByExpert(all) => {
            for (expert, parts) in all.iter().enumerate() {
                let mut first_out = 0;
                for &slot in parts {
                    planner.check_editable(slot)?;
                    let rows = planner.slots[slot].info.shape[0] as usize;
                    let edit = LowRank {
                        left: Factor { offset: first_out * rank * experts + expert, group_stride: 0, ..of_b },
                        right: Factor { offset: expert * rank * input, group_stride: 0, ..of_a },
                        rank,
                        groups: 1,
                        rows_per_group: rows,
                        cols: input,
                        scale,
                        exact,
                    };
                    planner.edit(slot, lora.label(), edit);
                    first_out += rows;
                }
            }
        }
    }
    Ok(())
}
