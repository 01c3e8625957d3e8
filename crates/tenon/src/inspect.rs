//! The verb `inspect`: what a directory or file is, and what Tenon can do with it. Headers only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};
use tenon_adapters::{Form, TrainingCheckpoint, What};
use tenon_checkpoint::{Checkpoint, SafetensorsFile, TensorInfo, TensorSource, read_json};
use tenon_gguf::{GgufFile, GgufTensor};
use tenon_merge::{AdapterConfig, methods};
use tenon_registry::{DequantizedTensors, Manifest};

use crate::base::Base;
use crate::{Error, facts, gguf_adapter, hub, training};

/// What a directory or file is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Inspection {
    /// Where it lies; of a training's output, the checkpoint that would be merged.
    pub path: PathBuf,
    /// `adapter`, `training`, `base_model`, `complete_model`, `merged_model`, `sharded_state`,
    /// `pickle`, `gguf`, `tensors` or `unknown`.
    pub kind: &'static str,
    /// The layout, such as `PEFT` or `MLX-LM`.
    pub format: Option<String>,
    /// Of an adapter: the method, as people call it.
    pub method: Option<String>,
    /// Of an adapter: its rank, where the method has one.
    pub rank: Option<u64>,
    /// Of an adapter: its alpha, where the method has one.
    pub alpha: Option<f64>,
    /// Of an adapter: the modules that it adapts, by the last part of their names.
    pub targets: Vec<String>,
    /// Of an adapter: how many modules it adapts.
    pub modules: Option<usize>,
    /// Of an adapter: the base that its configuration names.
    pub base: Option<String>,
    /// Of a model: its class.
    pub architecture: Option<String>,
    /// Of a model: the formats that it is stored quantized in.
    pub quantization: Vec<DequantizedTensors>,
    /// The element type that most of it is stored in.
    pub dtype: Option<String>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements, as the model has them.
    pub parameters: u64,
    /// Size of the weights' files.
    pub bytes: u64,
    /// What the training left about itself.
    pub training: Vec<Fact>,
    /// The training's checkpoint folders.
    pub checkpoints: Vec<TrainingCheckpoint>,
    /// Whether Tenon can merge it.
    pub mergeable: bool,
    /// Into what (of an adapter), or what can be merged into it (of a base).
    pub into: Option<String>,
    /// Why not, and what to do.
    pub why_not: Option<String>,
    /// What else a person should know.
    pub notes: Vec<String>,
}

/// A fact of a training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: Value,
    /// The file that tells.
    pub source: String,
}

/// Looks at a directory or file: reads headers and small JSON files.
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    let what = tenon_adapters::recognise(path)?;
    let mut it = Inspection { path: path.into(), ..Inspection::default() };
    match &what {
        What::Adapter(form) => it.adapter(path, *form)?,
        What::AdapterFile(file, form) => it.adapter(file, *form)?,
        What::Training(checkpoints) => {
            it.checkpoints = checkpoints.clone();
            match tenon_adapters::locate(path) {
                Ok(located) => {
                    it.adapter(&located.path, located.form)?;
                    it.notes.splice(0..0, located.notes);
                }
                Err(error) => it.why_not = Some(error.to_string()),
            }
            it.kind = "training";
        }
        What::CompleteModel | What::Model => it.model(path, &what)?,
        What::Gguf(file) if it.gguf_adapter(file)? => {}
        other => {
            it.kind = match other {
                What::DeepSpeed | What::Fsdp(_) => "sharded_state",
                What::PickledAdapter(_) | What::PickledModel(_) => "pickle",
                What::Gguf(_) => "gguf",
                What::BareAdapter(_) | What::Tensors => "tensors",
                _ => "unknown",
            };
            it.format = match other {
                What::DeepSpeed => Some("DeepSpeed ZeRO".into()),
                What::Fsdp(_) => Some("FSDP".into()),
                What::BareAdapter(tool) => Some((*tool).into()),
                _ => None,
            };
            it.why_not = Some(other.refusal(path).to_string());
            if let (true, What::BareAdapter(_) | What::Tensors) = (path.is_file(), other) {
                let file = Checkpoint::open_file(path)?;
                it.count(file.tensors(), file.files());
            } else if let What::Gguf(file) = other {
                it.bytes = std::fs::metadata(file).map_or(0, |meta| meta.len());
            }
        }
    }
    Ok(it)
}

impl Inspection {
    fn count(&mut self, tensors: &[TensorInfo], files: &[SafetensorsFile]) {
        self.tensors = tensors.len();
        self.bytes = files.iter().map(SafetensorsFile::len).sum();
        let summary = facts::summary(&Value::Null, tensors, self.bytes);
        self.parameters = summary.parameters;
        self.dtype = (!summary.dtype.is_empty()).then_some(summary.dtype);
    }

    fn adapter(&mut self, path: &Path, form: Form) -> Result<(), Error> {
        self.path = path.into();
        self.kind = "adapter";
        self.format = Some(form.name().into());
        let weights = match form {
            Form::Peft => path.join("adapter_model.safetensors"),
            Form::Mlx => path.join("adapters.safetensors"),
            Form::Kohya => path.to_path_buf(),
        };
        let file = Checkpoint::open_file(&weights)?;
        self.count(file.tensors(), file.files());
        let modules: BTreeSet<&str> = file.tensors().iter().filter_map(|t| module(&t.name)).collect();
        self.modules = (!modules.is_empty()).then_some(modules.len());
        let last = |module: &&str| module.rsplit('.').next().unwrap_or(module).to_string();
        self.targets = modules.iter().map(last).collect::<BTreeSet<_>>().into_iter().collect();
        let config = path.join("adapter_config.json");
        match form {
            Form::Peft => self.peft(&AdapterConfig::read(config)?),
            Form::Mlx => self.mlx(&read_json(&config)?),
            Form::Kohya => {
                self.method = Some("LoRA".into());
                let down = file.tensors().iter().find(|t| t.name.contains("down.weight"));
                self.rank = down.and_then(|down| down.shape.first().copied());
                self.mergeable = true;
                self.into = Some("a text model with the modules it names".into());
            }
        }
        if path.is_dir() {
            self.read_training(path);
        }
        if self.tensors == 0 {
            self.mergeable = false;
            self.into = None;
            self.why_not = Some(tenon_merge::Error::Empty.to_string());
        }
        Ok(())
    }

    /// Gives whether all is said of a GGUF file: that of a model is no adapter.
    fn gguf_adapter(&mut self, path: &Path) -> Result<bool, Error> {
        let file = match GgufFile::open(path) {
            Ok(file) => file,
            Err(error) => {
                (self.kind, self.why_not) = ("gguf", Some(error.to_string()));
                return Ok(true);
            }
        };
        if !gguf_adapter::is_adapter(&file) {
            return Ok(false);
        }
        self.path = path.into();
        self.kind = "adapter";
        self.format = Some("GGUF".into());
        self.method = Some("LoRA".into());
        self.base = file.metadata.text("general.base_model.0.name").map(str::to_string);
        self.tensors = file.tensors.len();
        self.parameters = file.tensors.iter().map(GgufTensor::elements).sum();
        self.bytes = file.len();
        self.dtype = file.tensors.iter().max_by_key(|t| t.elements()).map(|t| t.ggml_type.name().to_string());
        match gguf_adapter::facts(path, &file) {
            Ok(facts) => {
                self.rank = facts.rank;
                self.alpha = facts.alpha;
                self.modules = Some(facts.tensors.len());
                let last = |name: &String| {
                    let module = name.strip_suffix(".weight").unwrap_or(name);
                    module.rsplit('.').next().unwrap_or(module).to_string()
                };
                self.targets = facts.tensors.iter().map(last).collect::<BTreeSet<_>>().into_iter().collect();
                self.mergeable = !facts.tensors.is_empty();
                let architecture = facts.architecture;
                self.into = Some(format!("its base, a model that llama.cpp calls {architecture}"));
            }
            Err(error) => self.why_not = Some(error.to_string()),
        }
        Ok(true)
    }

    fn peft(&mut self, config: &AdapterConfig) {
        let fields = config.fields();
        let peft_type = fields.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        let known = methods().find(|known| known.peft_type == peft_type);
        let flag = |field: &str| fields.get(field) == Some(&Value::Bool(true));
        self.method = match (peft_type, flag("use_dora"), flag("use_rslora")) {
            ("LORA", true, false) => Some("DoRA".into()),
            ("LORA", false, true) => Some("rsLoRA".into()),
            ("LORA", true, true) => Some("DoRA+rsLoRA".into()),
            _ => Some(known.map_or(peft_type, |known| known.name).to_string()),
        };
        self.rank = ["r", "rank"].iter().find_map(|f| fields.get(*f)?.as_u64());
        self.alpha = ["lora_alpha", "alpha"].iter().find_map(|f| fields.get(*f)?.as_f64());
        if let Some(targets) = texts(fields, "target_modules") {
            self.targets = targets;
        }
        self.base = config.base_model().map(str::to_string);
        self.settle(config.check().err().map(|error| error.to_string()));
    }

    fn mlx(&mut self, config: &Value) {
        let kind = config.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
        self.method = Some(
            match kind {
                "dora" => "DoRA",
                "full" => "whole weights",
                _ => "LoRA",
            }
            .into(),
        );
        let parameters = config.get("lora_parameters");
        self.rank = parameters.and_then(|p| p.get("rank")?.as_u64()).filter(|_| kind != "full");
        let scale = parameters.and_then(|p| p.get("scale")?.as_f64());
        self.alpha = self.rank.and_then(|rank| Some(scale? * rank as f64));
        self.base = config.get("model").and_then(Value::as_str).map(str::to_string);
        self.settle(None);
    }

    fn settle(&mut self, why_not: Option<String>) {
        self.mergeable = why_not.is_none();
        if self.mergeable {
            let base = self
                .base
                .as_deref()
                .map_or("the base it was trained on".into(), |base| format!("{base}, its base"));
            self.into = Some(base);
        }
        self.why_not = why_not;
    }

    fn read_training(&mut self, dir: &Path) {
        let found = training::read(dir);
        for group in found.training.groups {
            let source = group.source;
            let fact = |e: tenon_card::Setting| Fact { name: e.name, value: e.value, source: source.clone() };
            self.training.extend(group.entries.into_iter().map(fact));
        }
        if !found.training.datasets.is_empty() {
            let value = found.training.datasets.join(", ").into();
            self.training.push(Fact { name: "Datasets".into(), value, source: "README.md".into() });
        }
        for metric in found.training.metrics {
            let fact = Fact { name: metric.name, value: metric.value.into(), source: metric.source };
            self.training.push(fact);
        }
        if let Some(last) = found.training.losses.last() {
            let source = "trainer_state.json".to_string();
            self.training.push(Fact { name: "Last loss".into(), value: last.loss.into(), source });
        }
        self.notes.extend(found.notes);
    }

    fn model(&mut self, path: &Path, what: &What) -> Result<(), Error> {
        let base = Base::open(path)?;
        self.count(base.tensors(), base.checkpoint.files());
        let config = base.config();
        self.architecture = Some(facts::summary(config, &[], 0).architecture);
        self.format = Some("Hugging Face safetensors".into());
        self.base = hub::repository(path).map(|(repository, _)| repository);
        let formats = base.formats().iter();
        self.quantization = formats
            .map(|format| DequantizedTensors { format: format.name.clone(), tensors: format.tensors })
            .collect();
        if let Some(most) = self.quantization.iter().max_by_key(|format| format.tensors) {
            self.dtype = Some(most.format.clone());
            self.notes.push("stored quantized; a merge dequantizes it and gives bf16".into());
        }
        if let Some(scheme) = base.unknown() {
            self.notes.push(format!("stored quantized in a way that Tenon does not dequantize ({scheme})"));
        }
        self.kind = "base_model";
        if *what == What::CompleteModel {
            let manifest = Manifest::read(path)?;
            self.kind = if manifest.saving.is_some() { "complete_model" } else { "merged_model" };
            self.notes.push(format!(
                "merged by Tenon {} from {} and {} ({})",
                manifest.tenon, manifest.base.path, manifest.adapter.path, manifest.parameters.peft_type
            ));
        }
        // A merged model is a base like any other.
        self.mergeable = base.unknown().is_none();
        if self.mergeable {
            self.into = Some("an adapter trained on it merges into it".into());
        } else {
            self.why_not = Some("only adapters that leave its quantized tensors alone merge into it".into());
        }
        Ok(())
    }
}

/// A field that is a list of texts, or one.
fn texts(fields: &Map<String, Value>, field: &str) -> Option<Vec<String>> {
    match fields.get(field)? {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(many) => {
            let mut texts: Vec<_> = many.iter().filter_map(|v| v.as_str().map(str::to_string)).collect();
            // PEFT keeps a set and writes it in another order each time.
            texts.sort();
            Some(texts)
        }
        _ => None,
    }
}

/// The module that an adapter's tensor belongs to.
fn module(name: &str) -> Option<&str> {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let ends = [
        ".lora_",
        ".hada_",
        ".lokr_",
        ".oft_",
        ".boft_",
        ".ia3_",
        ".hra_",
        ".miss_",
        ".bone_",
        ".vera_",
        ".randlora_",
        ".fourierft_",
        ".vblora_",
        ".shira_",
        ".c3a_",
        ".road_",
        ".wavelet_",
        ".delora_",
        ".gralora_",
        ".lora.",
    ];
    let at = ends.iter().filter_map(|end| name.find(end)).min();
    at.map(|at| &name[..at]).or_else(|| name.strip_suffix(".m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_modules() {
        let name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight";
        assert_eq!(module(name), Some("model.layers.0.mlp.up_proj"));
        assert_eq!(module("model.layers.1.self_attn.q_proj.m"), Some("model.layers.1.self_attn.q_proj"));
        assert_eq!(module("lora_te_layers_0_q_proj.lora_down.weight"), Some("lora_te_layers_0_q_proj"));
        assert_eq!(module("base_model.model.lm_head.weight"), None);
    }
}
