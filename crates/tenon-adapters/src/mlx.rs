//! MLX-LM's adapters.
//!
//! `adapter_config.json` has the arguments of the training (`fine_tune_type`,
//! `lora_parameters`), `adapters.safetensors` what was trained: for a linear
//! layer `lora_a` `[in, r]`, `lora_b` `[r, out]` and for DoRA `m` `[out]`;
//! `W + scale · (lora_a lora_b)ᵀ`. An embedding's are `[vocabulary, r]` and `[r,
//! dim]`, those of all experts of a layer `[experts · r, in]` and `[experts,
//! out, r]`. `fine_tune_type: full` saves whole weights. (mlx-lm,
//! `tuner/lora.py`, `tuner/dora.py`, `tuner/utils.py`.)

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tenon_checkpoint::{Checkpoint, TensorInfo, TensorSource, read_json};

use crate::{Error, Translated, Translation};

pub(crate) const WEIGHTS: &str = "adapters.safetensors";

/// Whether an `adapter_config.json` is MLX-LM's.
pub(crate) fn is_config(config: &Value) -> bool {
    config.get("peft_type").is_none()
        && ["fine_tune_type", "lora_parameters", "lora_layers"].iter().any(|f| config.get(f).is_some())
}

/// Rank, scale and kind as the configuration has them.
struct Settings {
    scale: f64,
    dora: bool,
    full: bool,
}

fn settings(path: &Path, config: &Value) -> Result<Settings, Error> {
    let wrong = |field: &str, value: Option<&Value>, expected: &str| Error::Field {
        path: path.into(),
        field: field.into(),
        found: value.map_or("absent".into(), Value::to_string),
        expected: expected.into(),
    };
    let kind = config.get("fine_tune_type").and_then(Value::as_str);
    let kind =
        kind.unwrap_or(if config.get("use_dora") == Some(&Value::Bool(true)) { "dora" } else { "lora" });
    if !["lora", "dora", "full"].contains(&kind) {
        return Err(wrong("fine_tune_type", config.get("fine_tune_type"), "\"lora\", \"dora\" or \"full\""));
    }
    let parameters = config.get("lora_parameters");
    let number = |field: &str| parameters.and_then(|p| p.get(field)).filter(|v| !v.is_null());
    let finite = |field: &str, value: &Value| {
        value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| wrong(field, Some(value), "a number"))
    };
    let scale = match (number("scale"), number("alpha"), number("rank")) {
        (Some(scale), ..) => finite("lora_parameters.scale", scale)?,
        // As versions before 0.20 wrote it.
        (None, Some(alpha), Some(rank)) => {
            finite("lora_parameters.alpha", alpha)? / finite("lora_parameters.rank", rank)?.max(1.0)
        }
        _ if kind == "full" => 1.0,
        _ => return Err(wrong("lora_parameters.scale", number("scale"), "the scale of the adapter")),
    };
    Ok(Settings { scale, dora: kind == "dora", full: kind == "full" })
}

pub(crate) fn translate(dir: &Path, base: &[TensorInfo]) -> Result<Translation, Error> {
    let config_path = dir.join("adapter_config.json");
    let config: Value = read_json(&config_path)?;
    let settings = settings(&config_path, &config)?;
    let weights = dir.join(WEIGHTS);
    if !weights.exists() {
        let old = dir.join("adapters.npz").exists();
        let remedy = if old {
            "it has adapters.npz, which old versions wrote: load and save it with mlx.core.load and save_safetensors"
        } else {
            "adapters.safetensors is not there"
        };
        let what = "an MLX-LM configuration without weights".into();
        return Err(Error::NotAnAdapter { path: dir.into(), what, remedy: remedy.into() });
    }
    let file = Arc::new(Checkpoint::open_file(&weights)?);
    let mut reading = Reading {
        path: &weights,
        base: base.iter().map(|info| info.name.as_str()).collect(),
        out: Translated::new(file.clone()),
        ranks: BTreeMap::new(),
        targets: BTreeSet::new(),
    };
    for tensor in 0..file.tensors().len() {
        reading.tensor(tensor, &settings)?;
    }
    let Reading { out, ranks, targets, .. } = reading;
    // The rank that most modules have, and the others by their paths.
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    ranks.values().for_each(|rank| *counts.entry(*rank).or_default() += 1);
    let rank = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
    let mut fields = Map::new();
    fields.insert("peft_type".into(), "LORA".into());
    fields.insert("base_model_name_or_path".into(), config.get("model").cloned().unwrap_or(Value::Null));
    fields.insert("r".into(), rank.into());
    fields.insert("lora_alpha".into(), json!(settings.scale * rank as f64));
    fields.insert("use_dora".into(), settings.dora.into());
    fields.insert("target_modules".into(), targets.into_iter().collect());
    let (mut rank_pattern, mut alpha_pattern) = (Map::new(), Map::new());
    for (module, own) in ranks.iter().filter(|(_, own)| **own != rank) {
        rank_pattern.insert(escaped(module), (*own).into());
        alpha_pattern.insert(escaped(module), json!(settings.scale * *own as f64));
    }
    if !rank_pattern.is_empty() {
        fields.insert("rank_pattern".into(), rank_pattern.into());
        fields.insert("alpha_pattern".into(), alpha_pattern.into());
    }
    let kind = if settings.full { "whole weights" } else { "an adapter" };
    let notes = vec![format!("{kind} of MLX-LM, read as PEFT's (scale {})", settings.scale)];
    Ok(Translation { config: fields, tensors: Arc::new(out), file, notes })
}

/// A module's path as a pattern that matches it alone.
pub(crate) fn escaped(module: &str) -> String {
    module.replace('.', r"\.")
}

struct Reading<'a> {
    path: &'a Path,
    base: HashSet<&'a str>,
    out: Translated,
    ranks: BTreeMap<String, u64>,
    targets: BTreeSet<String>,
}

impl Reading<'_> {
    fn wrong(&self, tensor: usize, problem: impl Into<String>) -> Error {
        let tensor = self.out.file().tensors()[tensor].name.clone();
        Error::Tensor { path: self.path.into(), tensor, problem: problem.into() }
    }

    fn tensor(&mut self, tensor: usize, settings: &Settings) -> Result<(), Error> {
        let info = self.out.file().tensors()[tensor].clone();
        let (module, part) = info.name.rsplit_once('.').unwrap_or(("", &info.name));
        let free = match part {
            _ if settings.full => self.out.add(info.name.clone(), tensor),
            "lora_a" | "lora_b" if module.contains(".switch_mlp.") => {
                return self.experts(tensor, module, part);
            }
            "lora_a" | "lora_b" => {
                let [first, second] = info.shape[..] else {
                    return Err(self.wrong(tensor, format!("has shape {:?}, expected a matrix", info.shape)));
                };
                let rank = if part == "lora_a" { second } else { first };
                self.note(tensor, module, rank)?;
                let letter = if part == "lora_a" { "A" } else { "B" };
                let name = if is_embedding(module) {
                    format!("{module}.lora_embedding_{letter}")
                } else {
                    format!("{module}.lora_{letter}.weight")
                };
                self.out.add_turned(name, tensor)
            }
            "m" if is_embedding(module) => {
                return Err(self.wrong(
                    tensor,
                    "is a DoRA magnitude on an embedding, which PEFT takes by columns and MLX by rows",
                ));
            }
            "m" => self.out.add(format!("{module}.lora_magnitude_vector.weight"), tensor),
            _ => self.out.add(info.name.clone(), tensor),
        };
        if free { Ok(()) } else { Err(self.wrong(tensor, "would have the name of another one")) }
    }

    /// Notes the rank of a module, which both factors must have.
    fn note(&mut self, tensor: usize, module: &str, rank: u64) -> Result<(), Error> {
        self.targets.insert(module.rsplit('.').next().unwrap_or(module).into());
        match self.ranks.insert(module.into(), rank) {
            Some(other) if other != rank => {
                Err(self.wrong(tensor, format!("has rank {rank}, its partner {other}")))
            }
            _ => Ok(()),
        }
    }

    /// The factors of all experts of a layer, cut into those of each.
    fn experts(&mut self, tensor: usize, module: &str, part: &str) -> Result<(), Error> {
        let file = self.out.file();
        let other = |part: &str| file.find(&format!("{module}.{part}")).map(|(_, info)| info.shape.clone());
        let shapes = (other("lora_a"), other("lora_b"));
        let (Some(a), Some(b)) = shapes else { return Err(self.wrong(tensor, "lacks its partner")) };
        let ([experts, out, rank], Some(inputs)) = (&b[..], a.last().copied()) else {
            return Err(self.wrong(tensor, "is not of the shape of experts' factors"));
        };
        let (experts, out, rank) = (*experts, *out, *rank);
        let elements = experts.checked_mul(rank).and_then(|n| n.checked_mul(inputs));
        if experts == 0 || elements != Some(a.iter().product()) {
            return Err(
                self.wrong(tensor, format!("and its partner have shapes {a:?} and {b:?}, which do not fit"))
            );
        }
        let (front, name) = module.split_once(".switch_mlp.").expect("it contains that");
        // Where experts lie in a checkpoint of Hugging Face, by what the base has.
        let mixtral = [("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")];
        let short = mixtral.iter().find(|(long, _)| *long == name).map(|(_, short)| *short);
        let of = |name: &str, expert: u64| format!("{front}.experts.{expert}.{name}");
        let name = [Some(name), short].into_iter().flatten().find(|n| self.has(&of(n, 0)));
        let Some(name) = name else {
            return Err(self.wrong(tensor, format!("adapts experts; the base has none at {front}.experts.0")));
        };
        for expert in 0..experts {
            let module = of(name, expert);
            self.note(tensor, &module, rank)?;
            if part == "lora_a" {
                let name = format!("{module}.lora_A.weight");
                self.out.add_part(name, tensor, expert * rank * inputs, vec![rank, inputs]);
            } else {
                let name = format!("{module}.lora_B.weight");
                self.out.add_part(name, tensor, expert * out * rank, vec![out, rank]);
            }
        }
        Ok(())
    }

    fn has(&self, module: &str) -> bool {
        self.base.contains(format!("{module}.weight").as_str())
    }
}

/// Whether a module is an embedding: MLX has its classes, here the name must do.
fn is_embedding(module: &str) -> bool {
    let last = module.rsplit('.').next().unwrap_or(module);
    ["embed_tokens", "wte", "wpe", "word_embeddings", "embedding", "embeddings", "tok_embeddings"]
        .contains(&last)
}
