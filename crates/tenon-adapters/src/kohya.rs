//! kohya's and diffusers' single-file LoRAs, where they are of a text model.
//!
//! `<prefix>_<module path, dots as underscores>.lora_down.weight` `[r, in]`,
//! `.lora_up.weight` `[out, r]`, `.alpha` (a scalar; the rank where it is not
//! there). `W + alpha / r · up · down`. A path with underscores for dots means
//! several; the base's own modules tell which. (kohya-ss/sd-scripts,
//! `networks/lora.py`.) LyCORIS adds `.dora_scale` `[out, 1]`, DoRA's magnitude
//! of each output; one of each input, `[1, in]`, is no PEFT adapter's.
//! (LyCORIS, `modules/locon.py`, `apply_weight_decompose`.)

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use serde_json::{Map, json};
use tenon_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};

use crate::mlx::escaped;
use crate::{Error, Translated, Translation};

/// What a network's modules are prefixed with: text encoders, and the network itself.
const PREFIXES: [&str; 6] =
    ["lora_te1_", "lora_te2_", "lora_te3_", "lora_te_", "lora_unet_", "lora_transformer_"];

/// Names of the parts, and what they are.
const PARTS: [(&str, Part); 7] = [
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".dora_scale", Part::Magnitude),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Down,
    Up,
    Magnitude,
}

/// Whether a tensor's name is one that kohya or diffusers give.
pub(crate) fn is_name(name: &str) -> bool {
    PARTS.iter().any(|(end, _)| name.ends_with(end))
}

/// The factors of one module.
#[derive(Default)]
struct Factors {
    down: Option<usize>,
    up: Option<usize>,
    alpha: Option<usize>,
    magnitude: Option<usize>,
}

pub(crate) fn translate(path: &Path, base: &[TensorInfo]) -> Result<Translation, Error> {
    let file = Arc::new(Checkpoint::open_file(path)?);
    let wrong = |tensor: usize, problem: String| Error::Tensor {
        path: path.into(),
        tensor: file.tensors()[tensor].name.clone(),
        problem,
    };
    let mut modules: BTreeMap<&str, Factors> = BTreeMap::new();
    for (tensor, info) in file.tensors().iter().enumerate() {
        let part = PARTS.iter().find_map(|(end, part)| Some((info.name.strip_suffix(end)?, *part)));
        match (part, info.name.strip_suffix(".alpha")) {
            (Some((module, Part::Down)), _) => modules.entry(module).or_default().down = Some(tensor),
            (Some((module, Part::Up)), _) => modules.entry(module).or_default().up = Some(tensor),
            (Some((module, Part::Magnitude)), _) => {
                modules.entry(module).or_default().magnitude = Some(tensor);
            }
            (None, Some(module)) => modules.entry(module).or_default().alpha = Some(tensor),
            (None, None) => {
                let problem = "is neither lora_down, lora_up, alpha nor dora_scale: a variant of LoRA (LyCORIS) that \
                               is not read in this layout; save it with PEFT";
                return Err(wrong(tensor, problem.into()));
            }
        }
    }
    let homes = Homes::new(base);
    let dora = modules.values().any(|factors| factors.magnitude.is_some());
    let mut out = Translated::new(file.clone());
    let mut ranks: BTreeMap<String, (u64, f64)> = BTreeMap::new();
    for (module, factors) in &modules {
        let any = factors.down.or(factors.up).or(factors.alpha).or(factors.magnitude);
        let any = any.expect("a module has a tensor");
        let (Some(down), Some(up)) = (factors.down, factors.up) else {
            return Err(wrong(any, "lacks its partner (lora_down and lora_up go together)".into()));
        };
        let home = homes.find(module).map_err(|problem| wrong(down, problem))?;
        let rank = file.tensors()[down].shape.first().copied().unwrap_or(0);
        let alpha = match factors.alpha {
            None => rank as f64,
            Some(alpha) => {
                scalar(&file, alpha)?.ok_or_else(|| wrong(alpha, "is not one finite number".into()))?
            }
        };
        if rank == 0 || ranks.insert(home.into(), (rank, alpha)).is_some() {
            return Err(wrong(down, format!("has rank 0, or another module is {home:?} of the base too")));
        }
        out.add(format!("{home}.lora_A.weight"), down);
        out.add(format!("{home}.lora_B.weight"), up);
        match factors.magnitude {
            Some(magnitude) => {
                let (outputs, info) = (file.tensors()[up].shape.first().copied(), &file.tensors()[magnitude]);
                if outputs != info.shape.first().copied() || outputs != Some(info.elements()) {
                    let problem = format!(
                        "has shape {:?}, not a magnitude for each output: LyCORIS trained it with wd_on_out off, \
                         which no DoRA of PEFT equals; merge it with LyCORIS",
                        info.shape
                    );
                    return Err(wrong(magnitude, problem));
                }
                let elements = vec![info.elements()];
                out.add_part(format!("{home}.lora_magnitude_vector"), magnitude, 0, elements);
            }
            None if dora => {
                return Err(wrong(
                    down,
                    "has no dora_scale, while other modules have: two adapters in one file".into(),
                ));
            }
            None => {}
        }
    }
    let mut fields = Map::new();
    let targets: std::collections::BTreeSet<&str> =
        ranks.keys().map(|module| module.rsplit('.').next().unwrap_or(module)).collect();
    let first = ranks.values().next().copied().unwrap_or((1, 1.0));
    fields.insert("peft_type".into(), "LORA".into());
    fields.insert("r".into(), first.0.into());
    fields.insert("lora_alpha".into(), json!(first.1));
    fields.insert("use_dora".into(), dora.into());
    fields.insert("target_modules".into(), targets.into_iter().collect());
    let others = || ranks.iter().filter(|(_, own)| **own != first);
    if others().next().is_some() {
        let by = |value: fn(&(u64, f64)) -> serde_json::Value| {
            others().map(|(module, own)| (escaped(module), value(own))).collect::<Map<_, _>>()
        };
        fields.insert("rank_pattern".into(), by(|own| own.0.into()).into());
        fields.insert("alpha_pattern".into(), by(|own| json!(own.1)).into());
    }
    let notes = vec![format!("a LoRA in kohya's layout, of {} modules, read as PEFT's", ranks.len())];
    Ok(Translation { config: fields, tensors: Arc::new(out), file, notes })
}

/// The value of a tensor of one element.
fn scalar(file: &Checkpoint, tensor: usize) -> Result<Option<f64>, Error> {
    let info = &file.tensors()[tensor];
    if info.elements() != 1 {
        return Ok(None);
    }
    let mut bytes = vec![0; info.bytes() as usize];
    file.read_bytes(tensor, 0, &mut bytes)?;
    let value = match (info.dtype, &bytes[..]) {
        (Dtype::F64, b) => b.as_chunks().0.first().map(|b| f64::from_le_bytes(*b)),
        (Dtype::F32, b) => b.as_chunks().0.first().map(|b| f32::from_le_bytes(*b).into()),
        (Dtype::F16, b) => b.as_chunks().0.first().map(|b| f16::from_le_bytes(*b).to_f64()),
        (Dtype::BF16, b) => b.as_chunks().0.first().map(|b| bf16::from_le_bytes(*b).to_f64()),
        (Dtype::I64, b) => b.as_chunks().0.first().map(|b| i64::from_le_bytes(*b) as f64),
        _ => None,
    };
    Ok(value.filter(|value| value.is_finite()))
}

/// The base's modules by their paths with underscores for dots.
struct Homes<'a> {
    flat: HashMap<String, Vec<&'a str>>,
}

impl<'a> Homes<'a> {
    fn new(base: &'a [TensorInfo]) -> Self {
        let mut flat: HashMap<String, Vec<&str>> = HashMap::new();
        for module in base.iter().filter_map(|info| info.name.strip_suffix(".weight")) {
            // A checkpoint may lack or have the names of what wraps it.
            for (at, _) in
                std::iter::once((0, "")).chain(module.match_indices('.').map(|(at, dot)| (at + 1, dot)))
            {
                flat.entry(module[at..].replace('.', "_")).or_default().push(module);
            }
        }
        Self { flat }
    }

    /// The module that a name means, or what is wrong with it.
    fn find(&self, name: &str) -> Result<&'a str, String> {
        let bare = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        let bare = bare.replace('.', "_");
        // Whole first, then without wrappers at its front, as long as a layer's number is in it.
        let mut starts = vec![0];
        starts.extend(bare.match_indices('_').map(|(at, _)| at + 1));
        for start in starts {
            let tail = &bare[start..];
            if start > 0
                && !tail.split('_').any(|part| part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty())
            {
                break;
            }
            // A number without the list that it counts in could be any list's.
            if tail.starts_with(|c: char| c.is_ascii_digit()) {
                break;
            }
            match self.flat.get(tail).map(Vec::as_slice) {
                None => {}
                Some([one]) => return Ok(one),
                Some([first, second, ..]) => {
                    return Err(format!("could belong to {first:?} and to {second:?} of the base"));
                }
                Some([]) => {}
            }
        }
        Err("has no home in this base: it may adapt an image model's network or another text encoder".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn underscores_are_resolved_by_the_base() {
        let base: Vec<_> =
            ["encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.1.self_attn.q_proj.weight"]
                .into_iter()
                .map(|name| TensorInfo::new(name, Dtype::F32, vec![2, 2]))
                .collect();
        let homes = Homes::new(&base);
        let home = "encoder.layers.1.self_attn.q_proj";
        assert_eq!(homes.find("lora_te_text_model_encoder_layers_1_self_attn_q_proj"), Ok(home));
        assert_eq!(homes.find("lora_te_encoder_layers_1_self_attn_q_proj"), Ok(home));
        assert!(homes.find("lora_unet_down_blocks_0_attentions_0_proj_in").unwrap_err().contains("no home"));
        // Never another layer, and never every layer's.
        assert!(homes.find("lora_te_encoder_layers_7_self_attn_q_proj").is_err());
        assert!(homes.find("lora_te_self_attn_q_proj").is_err());
    }
}
