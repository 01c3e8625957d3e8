//! A Customized Model deployed as what it is: its adapter, which the server applies to the base itself.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tenon_checkpoint::{
    Checkpoint, Digest, Error as CheckpointError, Observer, Stamp, TensorSource, hash_file, read_json,
};
use tenon_deploy::{EnvironmentKind, Error as DeployError, Payload, SourceFile};
use tenon_registry::{BaseModel, CustomizedModel, KnownFile};

use crate::base::Base;
use crate::companions::{self, Content};
use crate::{Error, adapter};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Refuses an adapter that the server would apply in another way than it was trained, or not at all.
pub(crate) fn check(
    customized: &CustomizedModel,
    base: &BaseModel,
    kind: EnvironmentKind,
) -> Result<(), Error> {
    let refused = |reason: String| -> Error {
        let what = format!("deploying {} as an adapter", customized.name);
        let reason = format!("{reason}; without --as-adapter it is saved first, and deployed whole");
        DeployError::Unsupported { what, kind, reason }.into()
    };
    let dir = adapter::place(&customized.path)?;
    if !dir.join(CONFIG).is_file() || !dir.join(WEIGHTS).is_file() {
        return Err(refused(format!("it is no directory with {CONFIG} and {WEIGHTS}, as PEFT saves LoRA")));
    }
    let config: Map<String, Value> = read_json(&dir.join(CONFIG))?;
    if let Some(reason) = unlike_plain_lora(&config, kind) {
        return Err(refused(reason));
    }
    let weights = Checkpoint::open_file(dir.join(WEIGHTS))?;
    let is_factor = |name: &str| name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
    if let Some(other) = weights.tensors().iter().find(|tensor| !is_factor(&tensor.name)) {
        return Err(refused(format!("it holds {}, which is no factor of a LoRA", other.name)));
    }
    if kind == EnvironmentKind::Ollama {
        let base = Base::open(&base.path)?;
        if let Some(format) = base.formats().first() {
            return Err(refused(format!("Ollama gets the base too, and that is stored as {}", format.name)));
        }
    }
    Ok(())
}

/// What a configuration asks for that a server with LoRA does not do.
fn unlike_plain_lora(config: &Map<String, Value>, kind: EnvironmentKind) -> Option<String> {
    let value = |name: &str| config.get(name).unwrap_or(&Value::Null);
    if value("peft_type") != "LORA" {
        return Some(format!("its method is {}, and such a server knows LoRA", value("peft_type")));
    }
    // What is on in each of these has another arithmetic, or further weights.
    let mut fields = vec![
        "use_dora",
        "modules_to_save",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "lora_bias",
        "fan_in_fan_out",
        "use_qalora",
        "alora_invocation_tokens",
        "arrow_config",
    ];
    // Ollama and llama.cpp divide one alpha by the rank.
    if kind == EnvironmentKind::Ollama {
        fields.extend(["use_rslora", "alpha_pattern"]);
    }
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if let Some(field) = fields.into_iter().find(|field| !is_off(value(field))) {
        return Some(format!("{CONFIG} has {field}, which such a server does not do"));
    }
    if !matches!(value("bias"), Value::Null) && value("bias") != "none" {
        return Some(format!("{CONFIG} has a bias, which such a server does not do"));
    }
    // Ollama reads a whole number, and takes 0 for what is none.
    let is_whole = value("lora_alpha").as_u64().is_some_and(|alpha| alpha > 0);
    if kind == EnvironmentKind::Ollama && !is_whole {
        return Some(format!("lora_alpha is {}, and Ollama reads whole numbers", value("lora_alpha")));
    }
    None
}

/// The adapter's files, and for Ollama those of its base.
pub(crate) fn payload(
    customized: &CustomizedModel,
    base: &BaseModel,
    kind: EnvironmentKind,
    observer: &dyn Observer,
) -> Result<Payload, Error> {
    let dir = adapter::place(&customized.path)?;
    let source = |dir: &Path, name: &str, known: &[KnownFile], owner: &str| {
        source_file(&dir.join(name), name, known, owner, observer)
    };
    let name = customized.name.as_str();
    let files = [CONFIG, WEIGHTS].map(|file| source(&dir, file, &customized.files, name));
    let files = files.into_iter().collect::<Result<_, _>>()?;
    let mut of_base = vec![];
    if kind == EnvironmentKind::Ollama {
        let checkpoint = Checkpoint::open(&base.path)?;
        let weights = checkpoint.files().iter().map(|file| file.path().to_path_buf());
        let companions =
            companions::of_model(&base.path)?.into_values().filter_map(|content| match content {
                Content::File(path) => Some(path),
                Content::Text(_) => None,
            });
        let paths: Vec<PathBuf> = weights.chain([base.path.join("config.json")]).chain(companions).collect();
        for path in paths {
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            of_base.push(source_file(&path, &file, &base.files, base.name.as_str(), observer)?);
        }
    }
    Ok(Payload::Adapter { dir, files, base: of_base })
}

/// A file with the digest that it was registered with. It is read through only where none is known, or
/// where it was touched since.
fn source_file(
    path: &Path,
    name: &str,
    known: &[KnownFile],
    owner: &str,
    observer: &dyn Observer,
) -> Result<SourceFile, Error> {
    let file = File::open(path).map_err(CheckpointError::io("open", path))?;
    let stamp = Stamp::of(&file, path)?;
    let known = known.iter().find(|known| known.name == name);
    let expected: Option<Digest> = known.and_then(|known| known.sha256);
    let is_untouched = known.is_some_and(|known| known.stamp == Some(stamp));
    let sha256 = match expected.filter(|_| is_untouched) {
        Some(digest) => digest,
        None => hash_file(&file, path, observer)?,
    };
    match expected {
        Some(expected) if expected != sha256 => {
            Err(Error::InputChanged { name: owner.into(), file: path.into(), expected, found: sha256 })
        }
        _ => Ok(SourceFile { name: name.into(), path: path.into(), bytes: stamp.bytes, sha256 }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_server_would_apply_otherwise_is_refused() {
        let plain = json!({
            "peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "use_dora": false,
            "modules_to_save": null, "alpha_pattern": {}, "rank_pattern": {"q_proj": 4},
        });
        let with = |field: &str, value: Value, kind| {
            let mut config = plain.as_object().cloned().unwrap_or_default();
            config.insert(field.into(), value);
            unlike_plain_lora(&config, kind)
        };
        use EnvironmentKind::{Ollama, Vllm};
        for kind in [Ollama, Vllm] {
            assert_eq!(with("r", json!(8), kind), None);
            for (field, value) in [
                ("peft_type", json!("LOHA")),
                ("use_dora", json!(true)),
                ("modules_to_save", json!(["lm_head"])),
                ("bias", json!("all")),
                ("fan_in_fan_out", json!(true)),
                ("layer_replication", json!([[0, 2]])),
            ] {
                assert!(with(field, value, kind).is_some(), "{field}");
            }
        }
        for (field, value) in
            [("use_rslora", json!(true)), ("alpha_pattern", json!({"q_proj": 4})), ("lora_alpha", json!(0.5))]
        {
            assert!(with(field, value.clone(), Ollama).is_some(), "{field}");
            assert_eq!(with(field, value, Vllm), None, "{field}");
        }
    }
}
