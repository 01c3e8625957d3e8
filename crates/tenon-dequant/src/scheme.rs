//! What the configuration says of how a checkpoint is quantized.

use serde_json::Value;
use tenon_checkpoint::{Checkpoint, TensorSource, read_json};

use crate::Error;
use crate::format::{Found, awq, bitsandbytes, compressed, fp8, gptq, mlx, mxfp4};
use crate::open::Shelf;

/// A way to quantize that Tenon undoes, with its settings.
#[derive(Debug)]
pub(crate) enum Scheme {
    /// No configuration; names and types of the tensors tell.
    ByTensors,
    BitsAndBytes,
    Gptq(gptq::Settings),
    Awq(awq::Settings),
    Fp8(fp8::Settings),
    Mxfp4,
    Compressed(compressed::Settings),
    Mlx(mlx::Settings),
}

pub(crate) enum Read {
    Known(Scheme),
    Unknown { scheme: String, why: String },
}

/// Fields of `config.json` that say how a model is quantized.
const FIELDS: [&str; 3] = ["quantization_config", "quantization", "compression_config"];
/// Parts of `config.json` about one model of several.
const PARTS: [&str; 3] = ["text_config", "llm_config", "language_config"];

/// The scheme of a checkpoint.
pub(crate) fn read(base: &Checkpoint, config: &Value) -> Result<Read, Error> {
    let find = |config: &Value| FIELDS.iter().find_map(|f| config.get(f).filter(|v| v.is_object()).cloned());
    let inner = || PARTS.iter().find_map(|part| find(config.get(part)?));
    let Some(quantization) = find(config).or_else(inner).map_or_else(|| beside(base), |v| Ok(Some(v)))?
    else {
        return Ok(Read::Known(Scheme::ByTensors));
    };
    let method = quantization.get("quant_method").and_then(Value::as_str);
    let unknown = |scheme: &str, why: &str| Read::Unknown { scheme: scheme.into(), why: why.into() };
    let Some(method) = method else {
        if quantization.get("bits").is_some() && quantization.get("group_size").is_some() {
            // MLX writes no method; AutoGPTQ's quantize_config.json has none either, but its tensors tell.
            let gptq = base.tensors().iter().any(|tensor| tensor.name.ends_with(".qweight"));
            return Ok(if gptq { gptq_of(&quantization)? } else { mlx_of(quantization)? });
        }
        return Ok(unknown("quantization_config without quant_method", "it does not say how"));
    };
    Ok(match method {
        "bitsandbytes" | "bitsandbytes_4bit" | "bitsandbytes_8bit" => Read::Known(Scheme::BitsAndBytes),
        "gptq" => gptq_of(&quantization)?,
        "awq" => awq_of(&quantization)?,
        "auto-round" | "auto_round" | "intel/auto-round" => {
            // AutoRound packs as others do and names whose way it is.
            let packing = quantization.get("packing_format").or(quantization.get("backend"));
            match packing.and_then(Value::as_str).unwrap_or_default() {
                format if format.contains("gptq") => gptq_of(&quantization)?,
                format if format.contains("awq") => awq_of(&quantization)?,
                format => unknown("auto-round", &format!("its packing {format:?} is not known")),
            }
        }
        "fp8" | "fbgemm_fp8" | "modelopt" => Read::Known(Scheme::Fp8(fp8::Settings::read(&quantization)?)),
        "mxfp4" => Read::Known(Scheme::Mxfp4),
        "compressed-tensors" | "sparseml" => match compressed::Settings::read(&quantization)? {
            Ok(settings) => Read::Known(Scheme::Compressed(settings)),
            Err(why) => unknown(method, &why),
        },
        other => unknown(other, "Tenon does not know how to dequantize it"),
    })
}

fn gptq_of(quantization: &Value) -> Result<Read, Error> {
    Ok(match gptq::Settings::read(quantization)? {
        Ok(settings) => Read::Known(Scheme::Gptq(settings)),
        Err(why) => Read::Unknown { scheme: "gptq".into(), why },
    })
}

fn awq_of(quantization: &Value) -> Result<Read, Error> {
    Ok(match awq::Settings::read(quantization)? {
        Ok(settings) => Read::Known(Scheme::Awq(settings)),
        Err(why) => Read::Unknown { scheme: "awq".into(), why },
    })
}

fn mlx_of(quantization: Value) -> Result<Read, Error> {
    Ok(match mlx::Settings::read(quantization)? {
        Ok(settings) => Read::Known(Scheme::Mlx(settings)),
        Err(why) => Read::Unknown { scheme: "mlx".into(), why },
    })
}

/// The configuration of older GPTQ and AWQ models, in a file of its own.
fn beside(base: &Checkpoint) -> Result<Option<Value>, Error> {
    if !base.tensors().iter().any(|tensor| tensor.name.ends_with(".qweight")) {
        return Ok(None);
    }
    for (file, method) in [("quantize_config.json", "gptq"), ("quant_config.json", "awq")] {
        let path = base.dir().join(file);
        if path.exists() {
            let mut value: Value = read_json(&path)?;
            if let Some(object) = value.as_object_mut() {
                object.entry("quant_method").or_insert(method.into());
            }
            return Ok(Some(value));
        }
    }
    Ok(None)
}

impl Scheme {
    /// The packed weight whose first tensor is this one.
    pub(crate) fn find(&self, shelf: &Shelf<'_>, tensor: usize) -> Result<Option<Found>, Error> {
        let bare = fp8::Settings { block: None, bare: true };
        Ok(match self {
            Scheme::BitsAndBytes => bitsandbytes::find(shelf, tensor, true)?,
            Scheme::Gptq(settings) => gptq::find(shelf, tensor, settings)?,
            Scheme::Awq(settings) => awq::find(shelf, tensor, settings)?,
            Scheme::Fp8(settings) => match fp8::find(shelf, tensor, settings)? {
                None => compressed::find_nvfp4_of_modelopt(shelf, tensor)?,
                found => found,
            },
            Scheme::Mxfp4 => mxfp4::find(shelf, tensor)?,
            Scheme::Compressed(settings) => compressed::find(shelf, tensor, settings)?,
            Scheme::Mlx(settings) => mlx::find(shelf, tensor, settings)?,
            // Those that need nothing said.
            Scheme::ByTensors => match bitsandbytes::find(shelf, tensor, false)? {
                None => match fp8::find(shelf, tensor, &bare)? {
                    None => mxfp4::find(shelf, tensor)?,
                    found => found,
                },
                found => found,
            },
        })
    }

    /// Whether a tensor serves the quantized model only: scales of activations and of the cache.
    pub(crate) fn drops(&self, name: &str) -> bool {
        const ENDS: [&str; 14] = [
            ".input_scale",
            ".input_scale_ub",
            ".input_zero_point",
            ".input_global_scale",
            ".input_g_idx",
            ".activation_scale",
            ".activation_scale_inv",
            ".output_scale",
            ".output_zero_point",
            ".weight_format",
            ".k_scale",
            ".v_scale",
            ".q_scale",
            ".kv_scale",
        ];
        !matches!(self, Scheme::Mlx(_) | Scheme::Mxfp4)
            && (ENDS.iter().any(|end| name.ends_with(end)) || name.ends_with("_activation_scale"))
    }
}

/// The type of the model's weights, as its configuration names it.
pub(crate) fn dtype(config: &Value) -> Option<&str> {
    let find = |config: &'_ Value| {
        ["dtype", "torch_dtype"].into_iter().find(|f| config.get(f).is_some_and(Value::is_string))
    };
    let parts = PARTS.iter().filter_map(|part| config.get(part));
    std::iter::once(config).chain(parts).find_map(|config| config.get(find(config)?)?.as_str())
}

/// A configuration without what it says of quantization, of `bfloat16`.
pub(crate) fn plain_config(config: &Value) -> Value {
    let mut plain = config.clone();
    let Some(top) = plain.as_object_mut() else { return plain };
    let mut named = false;
    let mut strip = |object: &mut serde_json::Map<String, Value>| {
        for field in FIELDS {
            // shift_remove: the other keys stay where they are.
            object.shift_remove(field);
        }
        for field in ["dtype", "torch_dtype"] {
            if let Some(dtype) = object.get_mut(field) {
                *dtype = "bfloat16".into();
                named = true;
            }
        }
    };
    strip(top);
    for part in PARTS {
        if let Some(Value::Object(part)) = top.get_mut(part) {
            strip(part);
        }
    }
    if !named {
        top.insert("torch_dtype".into(), "bfloat16".into());
    }
    plain
}

/// A field that must be a whole number.
pub(crate) fn whole(quantization: &Value, field: &str) -> Result<Option<i64>, Error> {
    match quantization.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_i64().map(Some).ok_or_else(|| Error::Field {
            field: field.into(),
            found: value.to_string(),
            expected: "a whole number",
        }),
    }
}
