//! What a directory or file is, by names and headers.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tenon_checkpoint::{Error as CheckpointError, SafetensorsFile, read_json};

use crate::training::{self, TrainingCheckpoint};
use crate::{Error, kohya, mlx};

/// The layout of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// PEFT: `adapter_config.json` and `adapter_model.safetensors`.
    Peft,
    /// MLX-LM: `adapter_config.json` and `adapters.safetensors`.
    Mlx,
    /// One safetensors file with kohya's names (`lora_te_..._q_proj.lora_down.weight`).
    Kohya,
}

impl Form {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Form::Peft => "PEFT",
            Form::Mlx => "MLX-LM",
            Form::Kohya => "kohya",
        }
    }
}

/// What something turned out to be.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// An adapter.
    Adapter(Form),
    /// A directory whose adapter is one file in it.
    AdapterFile(PathBuf, Form),
    /// The output directory of a training, with adapters in checkpoint folders.
    Training(Vec<TrainingCheckpoint>),
    /// A model that Tenon merged.
    CompleteModel,
    /// A whole model in Hugging Face layout.
    Model,
    /// An adapter, or tensors that may be one, only as a pickle.
    PickledAdapter(String),
    /// A whole model only as a pickle.
    PickledModel(String),
    /// State of a DeepSpeed ZeRO run.
    DeepSpeed,
    /// State of an FSDP run: the directory of its shards.
    Fsdp(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// A safetensors file whose tensors' names say that they are an adapter's, without its configuration.
    BareAdapter(&'static str),
    /// A safetensors file of other tensors.
    Tensors,
    /// None of these.
    Unknown,
}

/// Looks at a directory or file. Opens headers and small JSON files, no more.
pub fn recognise(path: &Path) -> Result<What, Error> {
    let meta = std::fs::metadata(path).map_err(CheckpointError::io("open", path))?;
    if meta.is_dir() { directory(path) } else { file(path) }
}

const PEFT_WEIGHTS: &str = "adapter_model.safetensors";

fn file(path: &Path) -> Result<What, Error> {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read(&mut magic));
    let len = read.map_err(CheckpointError::io("read", path))?;
    if &magic[..len] == b"GGUF" {
        return Ok(What::Gguf(path.into()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if ends(&[".bin", ".pt", ".pth", ".ckpt", ".pkl"]) {
        return Ok(What::PickledAdapter(name));
    }
    if !ends(&[".safetensors"]) {
        return Ok(What::Unknown);
    }
    let header = SafetensorsFile::open(path)?;
    let names = || header.header().entries.iter().map(|entry| entry.name.as_str());
    Ok(if names().any(kohya::is_name) {
        What::Adapter(Form::Kohya)
    } else if names().any(|name| name.contains(".lora_A") || name.contains("base_model.model.")) {
        What::BareAdapter("PEFT")
    } else if names().any(|name| name.ends_with(".lora_a")) {
        What::BareAdapter("MLX-LM")
    } else {
        What::Tensors
    })
}

fn directory(dir: &Path) -> Result<What, Error> {
    let has = |name: &str| dir.join(name).exists();
    if has("adapter_config.json") {
        let config: Value = read_json(&dir.join("adapter_config.json"))?;
        if mlx::is_config(&config) || (config.get("peft_type").is_none() && has(mlx::WEIGHTS)) {
            return Ok(What::Adapter(Form::Mlx));
        }
        if has(PEFT_WEIGHTS) {
            return Ok(What::Adapter(Form::Peft));
        }
    }
    if has("tenon.json") && has("config.json") {
        return Ok(What::CompleteModel);
    }
    let names = list(dir)?;
    if let Some(shards) = fsdp(dir, &names) {
        return Ok(What::Fsdp(shards));
    }
    let pickle = ["adapter_model.bin", "adapter_model.pt"].into_iter().find(|name| has(name));
    let deepspeed = names.iter().any(|name| {
        name == "zero_to_fp32.py" || name.starts_with("global_step") || name.ends_with("_optim_states.pt")
    });
    if deepspeed && pickle.is_none() && !has("model.safetensors") && !has("model.safetensors.index.json") {
        return Ok(What::DeepSpeed);
    }
    if let Some(pickle) = pickle {
        return Ok(What::PickledAdapter(pickle.into()));
    }
    if has("config.json") && (has("model.safetensors") || has("model.safetensors.index.json")) {
        return Ok(What::Model);
    }
    let checkpoints = training::checkpoints(dir, &names)?;
    if !checkpoints.is_empty() {
        return Ok(What::Training(checkpoints));
    }
    if let Some(pickle) = ["pytorch_model.bin", "pytorch_model.bin.index.json"].into_iter().find(|n| has(n)) {
        return Ok(What::PickledModel(pickle.into()));
    }
    // One file alone may be what is meant.
    let of = |end: &str| names.iter().filter(|name| name.ends_with(end)).collect::<Vec<_>>();
    match (&of(".safetensors")[..], &of(".gguf")[..]) {
        ([one], []) => match file(&dir.join(one))? {
            What::Adapter(form) => Ok(What::AdapterFile(dir.join(one), form)),
            bare @ What::BareAdapter(_) => Ok(bare),
            _ => Ok(What::Unknown),
        },
        ([], [one, ..]) => Ok(What::Gguf(dir.join(one))),
        _ => Ok(What::Unknown),
    }
}

/// The names in a directory, sorted.
fn list(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = std::fs::read_dir(dir).map_err(CheckpointError::io("list", dir))?;
    let mut names = vec![];
    for entry in entries {
        let entry = entry.map_err(CheckpointError::io("list", dir))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// The directory of an FSDP run's shards: this one, or one in it.
fn fsdp(dir: &Path, names: &[String]) -> Option<PathBuf> {
    if names.iter().any(|name| name.ends_with(".distcp")) {
        return Some(dir.into());
    }
    names.iter().find(|name| name.starts_with("pytorch_model_fsdp_")).map(|name| dir.join(name))
}

impl What {
    /// Why this cannot be merged as an adapter, and what to do.
    pub fn refusal(&self, path: &Path) -> Error {
        let shown = path.display();
        let not = |what: &str, remedy: &str| Error::NotAnAdapter {
            path: path.into(),
            what: what.into(),
            remedy: remedy.into(),
        };
        let pickled = |file: &String, command: String| Error::Pickled {
            path: path.into(),
            file: file.clone(),
            command,
        };
        match self {
            What::CompleteModel => not("a model that Tenon merged", "it needs no adapter any more"),
            What::Model => not(
                "a whole model",
                "an adapter directory has adapter_config.json and adapter_model.safetensors",
            ),
            What::PickledAdapter(file) => pickled(
                file,
                format!(
                    "python -c \"import torch; from safetensors.torch import save_file; \
                     save_file({{k: v.contiguous() for k, v in torch.load('{file}', map_location='cpu', \
                     weights_only=True).items()}}, '{PEFT_WEIGHTS}')\" (in its directory)"
                ),
            ),
            What::PickledModel(file) => pickled(
                file,
                "python -c \"from transformers import AutoModel; \
                 AutoModel.from_pretrained('.').save_pretrained('safe')\" (in its directory)"
                    .into(),
            ),
            What::DeepSpeed => Error::Sharded {
                path: path.into(),
                kind: "DeepSpeed ZeRO",
                command: format!(
                    "python {shown}/zero_to_fp32.py {shown} {shown}/whole --safe_serialization, then load it in PEFT \
                     and call save_pretrained"
                ),
            },
            What::Fsdp(shards) => Error::Sharded {
                path: path.into(),
                kind: "FSDP",
                command: format!(
                    "accelerate merge-weights {} {shown}/whole, then load it in PEFT and call save_pretrained",
                    shards.display()
                ),
            },
            What::Gguf(_) => not(
                "a GGUF file of a model",
                "an adapter in GGUF has general.type = adapter; name one, or an adapter of PEFT, MLX-LM or kohya",
            ),
            What::BareAdapter(tool) => not(
                &format!("the tensors of an adapter in {tool}'s layout without its adapter_config.json"),
                "rank and scale are in that file: put it beside them, and name the directory",
            ),
            What::Tensors => {
                not("a safetensors file without an adapter's tensors", "name an adapter's directory")
            }
            What::Adapter(_) | What::AdapterFile(..) | What::Training(_) | What::Unknown => not(
                "nothing that Tenon knows",
                "an adapter directory has adapter_config.json and adapter_model.safetensors; training checkpoints \
                 have them in checkpoint-N/",
            ),
        }
    }
}
