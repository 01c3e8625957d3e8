//! The architectures, one file a family.
//!
//! An [`Architecture`] says what llama.cpp's converter does to one family of
//! models: which classes it converts, what the tensors are called, which keys
//! it writes, and what happens to a tensor on its way. Everything has a
//! default that is the converter's `TextModel`, so that most say little.
//!
//! # To add one
//!
//! 1. Read its class in `conversion/*.py` of llama.cpp build 10488 and its
//!    configuration class in transformers.
//! 2. Make a file here with a unit struct that is an [`Architecture`]:
//!    * `classes`: the names it is registered for; `name`: `MODEL_ARCH_NAMES`.
//!    * `configs`: for each `model_type`, the defaults that transformers fills
//!      in, as far as the converter reads them ([`ConfigClass`]).
//!    * `names`: tables from the checkpoint's module names to GGUF's, `{}` for
//!      the layer; [`names::DECODER`] has what most decoders share. The first
//!      entry that matches counts, so a table of differences goes first.
//!    * `keep`, `parameters`, `tokenizer`, `extra`, `tensor` where the
//!      converter overrides `filter_tensors`, `set_gguf_parameters`,
//!      `set_vocab`, `generate_extra_tensors`, `modify_tensors`. Keep its order:
//!      the order of calls is the order in the file.
//!    * What torch does to a tensor is said with [`Tensor`]: `reshape`,
//!      `swap_axes`, `slice`, `split`, `stack`, `cat`, `add`. Nothing is read.
//!    * Experts that come one by one go through [`Experts`].
//! 3. Put it into [`ALL`], and its tiny model into `fixtures/make_gguf_goldens.py`.

mod bert;
mod chatglm;
mod cohere;
mod deepseek;
mod ernie;
mod experts;
mod falcon;
mod gemma;
mod gemma3n;
mod glm;
mod gpt2;
mod gpt_oss;
mod granite;
mod internlm;
mod llama;
mod llama4;
mod mistral;
pub(crate) mod names;
mod neox;
mod nomic;
mod olmo;
mod phi;
mod qwen;
mod qwen_next;
mod qwen_vl;
mod stablelm;

use std::collections::BTreeMap;

use serde_json::Value as Json;
use tenon_checkpoint::TensorInfo;

use super::config::{Config, ConfigClass};
use super::files::ModelFiles;
use super::mxfp4::Packed;
use super::parameters::{self, Keys};
use super::tokenizer;
use super::view::Tensor;
use crate::{Error, Metadata};

pub(crate) use experts::Experts;
pub(crate) use names::Names;

/// All architectures.
pub(crate) const ALL: &[&dyn Architecture] = &[
    &llama::Llama,
    &llama4::Llama4,
    &mistral::Mistral3,
    &mistral::SmolLm3,
    &qwen::Qwen2,
    &qwen::Qwen2Moe,
    &qwen::Qwen3,
    &qwen::Qwen3Moe,
    &qwen_next::QwenNext::Qwen3Next,
    &qwen_next::QwenNext::Qwen35,
    &qwen_next::QwenNext::Qwen35Moe,
    &qwen_vl::Qwen2Vl,
    &qwen_vl::Qwen3Vl,
    &qwen_vl::Qwen3VlMoe,
    &gemma::Gemma,
    &gemma::Gemma2,
    &gemma::Gemma3,
    &gemma::EmbeddingGemma,
    &gemma3n::Gemma3n,
    &gpt2::Gpt2,
    &neox::GptNeoX,
    &neox::StarCoder2,
    &phi::Phi2,
    &phi::Phi3,
    &phi::PhiMoe,
    &olmo::Olmo,
    &olmo::Olmo2,
    &olmo::OlmoE,
    &granite::Granite,
    &granite::GraniteMoe,
    &cohere::CommandR,
    &cohere::Cohere2,
    &chatglm::ChatGlm,
    &glm::Glm4,
    &glm::Glm4Moe,
    &glm::Glm4MoeLite,
    &deepseek::DeepSeek2,
    &ernie::Ernie,
    &ernie::ErnieMoe,
    &gpt_oss::GptOss,
    &falcon::Falcon,
    &falcon::Mpt,
    &stablelm::StableLm,
    &internlm::InternLm2,
    &internlm::InternLm3,
    &stablelm::Baichuan,
    &bert::Bert,
    &bert::DistilBert,
    &bert::Roberta,
    &bert::XlmRoberta,
    &nomic::NomicBert,
    &nomic::NomicBertMoe,
];

/// What an architecture is told of the model.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) config: &'a Config,
    pub(crate) files: &'a ModelFiles,
    /// Layers in the file.
    pub(crate) layers: u64,
    /// `general.file_type`.
    pub(crate) file_type: u32,
    /// Name of the pre-tokenizer, if it was given by hand.
    pub(crate) pre_tokenizer: Option<&'a str>,
    /// Name of the architecture in keys.
    pub(crate) architecture: &'static str,
    pub(crate) names: &'static [Names],
}

impl<'a> Model<'a> {
    /// A model of an architecture, in 32 bits and with a pre-tokenizer that is recognised.
    pub(crate) fn new(
        config: &'a Config,
        files: &'a ModelFiles,
        architecture: &'static dyn Architecture,
    ) -> Result<Self, Error> {
        Ok(Self {
            config,
            files,
            layers: architecture.layers(config)?,
            file_type: 0,
            pre_tokenizer: None,
            architecture: architecture.name(),
            names: architecture.names(),
        })
    }
}

/// Tensors on their way into the file, in order, and keys that come from them.
#[derive(Default)]
pub(crate) struct Outputs {
    /// Those that keep the blocks that they are stored in; they go before all others.
    pub(crate) packed: Vec<(String, Packed)>,
    /// Tensors that mean nothing before another one has come, by its name.
    pub(crate) waiting: BTreeMap<String, Tensor>,
    pub(crate) tensors: Vec<(String, Tensor)>,
    /// Keys that go before all others.
    pub(crate) keys: Metadata,
    pub(crate) experts: Experts,
}

impl Outputs {
    /// A tensor under the GGUF name of the checkpoint's name.
    pub(crate) fn map(&mut self, model: &Model<'_>, name: &str, tensor: Tensor) -> Result<(), Error> {
        let mapped = names::map(model.names, name, model.layers);
        let mapped =
            mapped.ok_or_else(|| Error::NoPlace { tensor: name.into(), architecture: model.architecture })?;
        self.push(mapped, tensor);
        Ok(())
    }

    /// A tensor under its GGUF name.
    pub(crate) fn push(&mut self, name: impl Into<String>, tensor: Tensor) {
        self.tensors.push((name.into(), tensor));
    }
}

/// A tensor of the checkpoint that comes to be converted.
pub(crate) struct Incoming<'a> {
    pub(crate) name: &'a str,
    pub(crate) tensor: Tensor,
    /// The first number in its name: its layer, for most.
    pub(crate) layer: Option<u64>,
}

/// A family of models.
pub(crate) trait Architecture: Sync {
    /// Names in `architectures` of `config.json`.
    fn classes(&self) -> &'static [&'static str];

    /// Whether it is the one for a model of one of its classes, where several share a class.
    fn is_for(&self, config: &Config) -> bool {
        let _ = config;
        true
    }

    /// Its name in GGUF.
    fn name(&self) -> &'static str;

    /// Configuration classes.
    fn configs(&self) -> &'static [ConfigClass];

    /// Tables of names, the first that has one counts.
    fn names(&self) -> &'static [Names];

    /// Changes to the configuration before anything is read from it.
    fn prepare(&self, config: &mut Config, tensors: &[TensorInfo]) -> Result<(), Error> {
        let _ = (config, tensors);
        Ok(())
    }

    /// Layers in the file.
    fn layers(&self, config: &Config) -> Result<u64, Error> {
        config.layers()
    }

    /// `general.file_type`, where it is not that of `--type`.
    fn file_type(&self, config: &Config) -> Option<u32> {
        let _ = config;
        None
    }

    /// Whether it takes MXFP4 as it is stored.
    fn takes_mxfp4(&self) -> bool {
        false
    }

    /// The name under which a tensor is converted; none for one that is left out.
    fn keep(&self, name: &str, config: &Config) -> Option<String> {
        let _ = config;
        keep_text(name)
    }

    /// Keys about the model.
    fn parameters(&self, model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
        base_parameters(model, keys)
    }

    /// Keys about the tokenizer.
    fn tokenizer(&self, model: &Model<'_>, out: &mut Metadata) -> Result<(), Error> {
        tokenizer::bpe(model, out)
    }

    /// Tensors that no checkpoint has.
    fn extra(&self, model: &Model<'_>, out: &mut Outputs) -> Result<(), Error> {
        let _ = (model, out);
        Ok(())
    }

    /// One tensor of the checkpoint.
    fn tensor(&self, model: &Model<'_>, incoming: Incoming<'_>, out: &mut Outputs) -> Result<(), Error> {
        out.map(model, incoming.name, incoming.tensor)
    }
}

/// Reads a `config.json`, and completes it as the architecture of the model wants it.
pub(crate) fn configure(
    config: &serde_json::Value,
    tensors: &[TensorInfo],
) -> Result<(Config, &'static dyn Architecture), Error> {
    let mut config = Config::new(config, &config_classes())?;
    let architecture = find(&config)?;
    architecture.prepare(&mut config, tensors)?;
    Ok((config, architecture))
}

/// llama.cpp's name of the architecture of a model with this `config.json`.
pub(crate) fn architecture(config: &serde_json::Value) -> Result<&'static str, Error> {
    Ok(find(&Config::new(config, &config_classes())?)?.name())
}

/// The architecture of a model.
fn find(config: &Config) -> Result<&'static dyn Architecture, Error> {
    let class = config.class.as_str();
    let found = ALL.iter().copied().find(|arch| arch.classes().contains(&class) && arch.is_for(config));
    found.ok_or_else(|| {
        let mut known: Vec<&str> = ALL.iter().flat_map(|arch| arch.classes()).copied().collect();
        known.sort_unstable();
        Error::Architecture { architecture: class.into(), known }
    })
}

/// All configuration classes.
pub(crate) fn config_classes() -> Vec<&'static ConfigClass> {
    ALL.iter().flat_map(|arch| arch.configs()).collect()
}

/// The keys that most have.
pub(crate) fn base_parameters(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    parameters::write(model.config, model.layers, model.file_type, keys)
}

/// `pooling_type`, from what sentence-transformers keeps beside an embedding model.
pub(crate) fn pooling_type(model: &Model<'_>, keys: &mut Keys<'_>) -> Result<(), Error> {
    let Some(modules) = model.files.json("modules.json")? else { return Ok(()) };
    let text =
        |module: &Json, field: &str| module.get(field).and_then(Json::as_str).unwrap_or_default().to_string();
    let pooling =
        modules.as_array().into_iter().flatten().find(|module| text(module, "type").ends_with("Pooling"));
    let Some(path) = pooling.map(|module| text(module, "path")) else { return Ok(()) };
    let name = format!("{path}/config.json");
    let Some(pooling) = model.files.object(&name)? else {
        return Err(model.files.wrong(&name, "modules.json names it, but it is not there"));
    };
    let flag = |field: &str| pooling.get(field).and_then(Json::as_bool) == Some(true);
    let mode = pooling.get("pooling_mode").and_then(Json::as_str);
    let (mean, cls, last) = (1, 2, 3);
    let kind = match () {
        () if flag("pooling_mode_mean_tokens") => mean,
        () if flag("pooling_mode_cls_token") => cls,
        () if flag("pooling_mode_lasttoken") => last,
        () => match mode {
            Some("mean") => mean,
            Some("cls") => cls,
            Some("lasttoken") => last,
            _ => {
                return Err(model
                    .files
                    .wrong(&name, "pooling is neither by mean, by the class token nor by the last token"));
            }
        },
    };
    keys.u32("pooling_type", kind)
}

/// Parts of other modalities begin with one of these.
const OTHER_BEGINNINGS: [&str; 10] = [
    "mlp",
    "vit.",
    "vpm.",
    "siglip2.",
    "conformer.",
    "merger.",
    "resampler.",
    "sound_encoder.",
    "sound_projection.",
    "speech_embeddings.",
];

/// Or have one of these in their name.
const OTHER_PARTS: [&str; 17] = [
    "visual.",
    "vision.",
    "audio.",
    "talker.",
    "vision_",
    "audio_",
    "token2wav.",
    "code2wav.",
    "projector.",
    "pre_mm_projector_norm",
    "image_newline",
    "view_seperator",
    "patch_embed",
    "patch_embedding",
    "patch_merger.",
    "patch_merge_mlp.",
    "model.connector.",
];

/// The name of a tensor of the language model; none for one of an image or audio tower.
pub(crate) fn keep_text(name: &str) -> Option<String> {
    if OTHER_BEGINNINGS.iter().any(|start| name.starts_with(start))
        || OTHER_PARTS.iter().any(|part| name.contains(part))
    {
        return None;
    }
    let name = if name.ends_with("e_score_correction_bias") {
        name.replace("e_score_correction_bias", "e_score_correction.bias")
    } else {
        name.to_string()
    };
    Some(name.replace("language_model.", ""))
}
