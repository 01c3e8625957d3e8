//! The way back: which rows of which tensors of a model become a tensor of its GGUF.
//!
//! A conversion says what it does to tensors as looks ([`super::view`]). Read
//! the other way round, a look says where each row of the output lies: all
//! that files about a GGUF (an adapter for one, say) need to be read as files
//! about the model that it was made from.

use std::collections::HashMap;

use serde_json::Value as Json;
use tenon_checkpoint::TensorInfo;

use super::arch::{self, Model};
use super::files::ModelFiles;
use super::view::{Arithmetic, Tensor};
use crate::Error;

/// The tensors that a model's GGUF has, in terms of the model's own.
#[derive(Debug)]
pub struct Provenance {
    architecture: &'static str,
    recipes: HashMap<String, Tensor>,
    /// Of each tensor of the model its elements in a row.
    row_lens: Vec<u64>,
}

/// Where a tensor of a GGUF comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Origins {
    /// From whole rows of the model's tensors: for each of its own rows, all axes but the last taken as
    /// one, the number of the tensor and the row there.
    Rows(Vec<(usize, u64)>),
    /// It is a vector of the model, to each number of which something was added.
    Vector {
        /// Number of the tensor.
        tensor: usize,
        /// What was added.
        plus: f32,
    },
    /// From columns, or computed: nothing that goes back row by row.
    Otherwise,
}

impl Provenance {
    /// Plans the conversion of a model with this `config.json` and these tensors, as far as tensors go. One
    /// that cannot be converted without files that are not there (an embedding that is cut to its
    /// tokenizer) is left out.
    pub fn plan(config: &Json, tensors: &[TensorInfo], files: &ModelFiles) -> Result<Self, Error> {
        let (config, architecture) = arch::configure(config, tensors)?;
        let model = Model::new(&config, files, architecture)?;
        let keep = |(tensor, info): (usize, &TensorInfo)| {
            Some(super::Ordered { name: architecture.keep(&info.name, &config)?, tensor })
        };
        let mut order: Vec<_> = tensors.iter().enumerate().filter_map(keep).collect();
        order.sort_by(|a, b| a.name.cmp(&b.name));
        let outputs = super::recipes(architecture, &model, &order, tensors, |_| Ok(()))?;
        let recipes = outputs.tensors.into_iter().collect();
        let row_lens = tensors.iter().map(|info| info.shape.last().copied().unwrap_or(1)).collect();
        Ok(Self { architecture: architecture.name(), recipes, row_lens })
    }

    /// The architecture's name in GGUF.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Names of the tensors of the GGUF, in alphabetical order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.recipes.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The shape of a tensor of the GGUF and where it comes from.
    pub fn of(&self, name: &str) -> Option<(Vec<u64>, Origins)> {
        let recipe = self.recipes.get(name)?;
        let shape = recipe.shape();
        let origins = match recipe.arithmetic {
            Arithmetic::Keep if shape.len() > 1 => match recipe.whole_rows(&self.row_lens) {
                Some(rows) => Origins::Rows(rows),
                None => Origins::Otherwise,
            },
            Arithmetic::Keep | Arithmetic::Add(_) if shape.len() == 1 => {
                let plus = if let Arithmetic::Add(plus) = recipe.arithmetic { plus } else { 0.0 };
                match recipe.whole_rows(&self.row_lens).as_deref() {
                    Some([(tensor, 0)]) => Origins::Vector { tensor: *tensor, plus },
                    _ => Origins::Otherwise,
                }
            }
            _ => Origins::Otherwise,
        };
        Some((shape, origins))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tenon_checkpoint::Dtype;

    #[test]
    fn heads_go_back_to_where_they_were_and_norms_to_what_they_were() {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 2,
            "num_key_value_heads": 1, "hidden_size": 8, "num_hidden_layers": 1,
        });
        let info = |name: &str, shape: &[u64]| TensorInfo::new(name, Dtype::F32, shape.to_vec());
        let tensors = [
            info("model.embed_tokens.weight", &[10, 8]),
            info("model.layers.0.self_attn.q_proj.weight", &[8, 8]),
            info("model.layers.0.input_layernorm.weight", &[8]),
        ];
        let none = ModelFiles::listed(std::path::Path::new("model"), Default::default());
        let model = Provenance::plan(&config, &tensors, &none).unwrap();
        assert_eq!(model.architecture(), "llama");
        let (shape, rows) = model.of("blk.0.attn_q.weight").unwrap();
        assert_eq!(shape, [8, 8]);
        assert_eq!(rows, Origins::Rows([0, 2, 1, 3, 4, 6, 5, 7].map(|row| (1, row)).to_vec()));
        let (_, norm) = model.of("blk.0.attn_norm.weight").unwrap();
        assert_eq!(norm, Origins::Vector { tensor: 2, plus: 0.0 });
        assert_eq!(model.of("blk.0.attn_k.weight"), None);

        let config = json!({
            "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "num_attention_heads": 2,
            "num_key_value_heads": 1, "hidden_size": 8, "num_hidden_layers": 1, "head_dim": 4,
        });
        let gemma = Provenance::plan(&config, &tensors, &none).unwrap();
        let (_, norm) = gemma.of("blk.0.attn_norm.weight").unwrap();
        assert_eq!(norm, Origins::Vector { tensor: 2, plus: 1.0 });

        let config = json!({
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_head": 2, "n_embd": 8, "n_layer": 1,
            "n_ctx": 16,
        });
        let tensors = [info("transformer.h.0.attn.c_proj.weight", &[8, 8])];
        let gpt2 = Provenance::plan(&config, &tensors, &none).unwrap();
        assert_eq!(gpt2.of("blk.0.attn_output.weight").unwrap().1, Origins::Otherwise);
    }
}
