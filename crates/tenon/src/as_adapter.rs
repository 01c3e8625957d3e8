//! A Customized Model deployed as what it is: its adapter, which the server applies to the base itself.

use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value};
use tenon_checkpoint::{
    Checkpoint, Digest, Error as CheckpointError, Observer, Stamp, TensorSource, hash_file, read_json,
};
use tenon_deploy::{EnvironmentKind, Error as DeployError, Payload, SourceFile};
use tenon_registry::{BaseModel, CustomizedModel, KnownFile};

use crate::base::Base;
use crate::gguf_lora::{GgufLora, Unfit};
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
    if takes_gguf(kind) {
        if let Some(format) = Base::open(&base.path)?.formats().first() {
            return Err(refused(format!(
                "the server gets the base too, and that is stored as {}",
                format.name
            )));
        }
        return match GgufLora::plan(&base.path, &customized.path) {
            Ok(_) => Ok(()),
            Err(Unfit::Reason(reason)) => Err(refused(reason)),
            Err(Unfit::Error(error)) => Err(error),
        };
    }
    let dir = adapter::place(&customized.path)?;
    if !dir.join(CONFIG).is_file() || !dir.join(WEIGHTS).is_file() {
        return Err(refused(format!("it is no directory with {CONFIG} and {WEIGHTS}, as PEFT saves LoRA")));
    }
    let config: Map<String, Value> = read_json(&dir.join(CONFIG))?;
    if let Some(reason) = unlike_plain_lora(&config) {
        return Err(refused(reason));
    }
    let weights = Checkpoint::open_file(dir.join(WEIGHTS))?;
    let is_factor = |name: &str| name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
    if let Some(other) = weights.tensors().iter().find(|tensor| !is_factor(&tensor.name)) {
        return Err(refused(format!("it holds {}, which is no factor of a LoRA", other.name)));
    }
    Ok(())
}

/// Whether a kind of server gets an adapter as GGUF, and its base too.
pub(crate) fn takes_gguf(kind: EnvironmentKind) -> bool {
    matches!(kind, EnvironmentKind::Ollama | EnvironmentKind::LlamaServer)
}

/// What a configuration asks for that a server with LoRA does not do.
fn unlike_plain_lora(config: &Map<String, Value>) -> Option<String> {
    let value = |name: &str| config.get(name).unwrap_or(&Value::Null);
    if value("peft_type") != "LORA" {
        return Some(format!("its method is {}, and such a server knows LoRA", value("peft_type")));
    }
    // What is on in each of these has another arithmetic, or further weights.
    let fields = [
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
    None
}

/// The adapter's files as PEFT left them.
pub(crate) fn payload(customized: &CustomizedModel, observer: &dyn Observer) -> Result<Payload, Error> {
    let dir = adapter::place(&customized.path)?;
    let source = |file: &&str| {
        source_file(&dir.join(file), file, &customized.files, customized.name.as_str(), observer)
    };
    let files = [CONFIG, WEIGHTS].iter().map(source).collect::<Result<_, _>>()?;
    Ok(Payload::Adapter { dir, files, base: vec![] })
}

/// Fails where a file is not what it was when it was registered. Those that nobody touched are not read.
pub(crate) fn check_unchanged(
    dir: &Path,
    known: &[KnownFile],
    owner: &str,
    observer: &dyn Observer,
) -> Result<(), Error> {
    let dir = if dir.is_file() { dir.parent().unwrap_or(dir) } else { dir };
    for file in known.iter().filter(|file| file.sha256.is_some()) {
        source_file(&dir.join(&file.name), &file.name, known, owner, observer)?;
    }
    Ok(())
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
        let with = |field: &str, value: Value| {
            let mut config = plain.as_object().cloned().unwrap_or_default();
            config.insert(field.into(), value);
            unlike_plain_lora(&config)
        };
        for (field, value) in [("r", json!(8)), ("use_rslora", json!(true)), ("lora_alpha", json!(0.5))] {
            assert_eq!(with(field, value), None, "{field}");
        }
        for (field, value) in [
            ("peft_type", json!("LOHA")),
            ("use_dora", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("bias", json!("all")),
            ("fan_in_fan_out", json!(true)),
            ("layer_replication", json!([[0, 2]])),
        ] {
            assert!(with(field, value).is_some(), "{field}");
        }
    }
}
