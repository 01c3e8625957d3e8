//! Models in true shapes, made of noise: what merging costs does not depend on what they say.

mod many;
mod quantized;

use std::path::Path;

use serde_json::{Value, json};
use tenon_checkpoint::{
    Dtype, Error, Rows, ShardLayout, StagingDir, TensorInfo, TensorSource, WriteOptions, write_shards,
};

pub use many::home_with_models;
pub use quantized::Stored;

/// Sizes of a Llama.
#[derive(Debug, Clone, Copy)]
pub struct LlamaShape {
    /// Name on the command line.
    pub name: &'static str,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Layers.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of the feed-forward part.
    pub intermediate: u64,
    /// Tokens.
    pub vocabulary: u64,
    /// Whether the output head is the embedding.
    pub tied: bool,
}

/// The shapes of Llama 3.2 1B and Llama 3.1 8B, and a small one for trying things.
pub const SHAPES: [LlamaShape; 3] = [
    LlamaShape {
        name: "tiny",
        hidden: 256,
        layers: 4,
        heads: 8,
        kv_heads: 2,
        intermediate: 1024,
        vocabulary: 4096,
        tied: true,
    },
    LlamaShape {
        name: "1b",
        hidden: 2048,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        intermediate: 8192,
        vocabulary: 128_256,
        tied: true,
    },
    LlamaShape {
        name: "8b",
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        intermediate: 14_336,
        vocabulary: 128_256,
        tied: false,
    },
];

impl LlamaShape {
    /// Name, outputs and inputs of each linear layer of a block.
    fn linears(&self) -> [(&'static str, u64, u64); 7] {
        let head = self.hidden / self.heads;
        let kv = self.kv_heads * head;
        [
            ("self_attn.q_proj", self.hidden, self.hidden),
            ("self_attn.k_proj", kv, self.hidden),
            ("self_attn.v_proj", kv, self.hidden),
            ("self_attn.o_proj", self.hidden, self.hidden),
            ("mlp.gate_proj", self.intermediate, self.hidden),
            ("mlp.up_proj", self.intermediate, self.hidden),
            ("mlp.down_proj", self.hidden, self.intermediate),
        ]
    }

    /// The base's tensors, bf16.
    fn base_tensors(&self) -> Vec<TensorInfo> {
        let bf16 = |name: String, shape: Vec<u64>| TensorInfo::new(name, Dtype::BF16, shape);
        let mut tensors = vec![bf16("model.embed_tokens.weight".into(), vec![self.vocabulary, self.hidden])];
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            tensors.push(bf16(name("input_layernorm"), vec![self.hidden]));
            tensors.extend(self.linears().map(|(part, out, input)| bf16(name(part), vec![out, input])));
            tensors.push(bf16(name("post_attention_layernorm"), vec![self.hidden]));
        }
        tensors.push(bf16("model.norm.weight".into(), vec![self.hidden]));
        if !self.tied {
            tensors.push(bf16("lm_head.weight".into(), vec![self.vocabulary, self.hidden]));
        }
        tensors
    }

    /// The tensors of a LoRA on those linear layers whose name ends as one of `targets`, f32.
    fn adapter_tensors(&self, rank: u64, targets: &[&str]) -> Vec<TensorInfo> {
        let mut tensors = vec![];
        for layer in 0..self.layers {
            for (part, out, input) in self.linears() {
                if targets.iter().any(|target| part.ends_with(target)) {
                    let name =
                        |ab: &str| format!("base_model.model.model.layers.{layer}.{part}.lora_{ab}.weight");
                    tensors.push(TensorInfo::new(name("A"), Dtype::F32, vec![rank, input]));
                    tensors.push(TensorInfo::new(name("B"), Dtype::F32, vec![out, rank]));
                }
            }
        }
        tensors
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "intermediate_size": self.intermediate,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied, "rms_norm_eps": 1e-5,
            "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 131_072,
            "rope_parameters": { "rope_type": "default", "rope_theta": 500_000.0 },
        })
    }

    /// Writes the base to `dir` unless it is there.
    pub fn write_base(&self, dir: &Path) -> Result<(), Error> {
        write_model(
            dir,
            &Noise(self.base_tensors()),
            5_000_000_000,
            "model",
            &[("config.json", self.config())],
        )
    }

    /// Writes a LoRA to `dir` unless it is there.
    pub fn write_adapter(&self, dir: &Path, rank: u64, targets: &[&str]) -> Result<(), Error> {
        let config = json!({
            "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets,
            "base_model_name_or_path": format!("llama-{}", self.name), "task_type": "CAUSAL_LM",
        });
        let noise = Noise(self.adapter_tensors(rank, targets));
        write_model(dir, &noise, u64::MAX, "adapter_model", &[("adapter_config.json", config)])
    }

    /// Writes a SentencePiece tokenizer to `dir` unless it is there: control tokens, bytes, and pieces
    /// that only have to be different.
    pub fn write_tokenizer(&self, dir: &Path) -> std::io::Result<()> {
        let path = dir.join("tokenizer.model");
        if path.exists() {
            return Ok(());
        }
        let mut model = vec![];
        for id in 0..self.vocabulary {
            let (piece, kind) = match id {
                0 => ("<unk>".to_string(), 2),
                1 => ("<s>".to_string(), 3),
                2 => ("</s>".to_string(), 3),
                3..259 => (format!("<0x{:02X}>", id - 3), 6),
                _ => (format!("\u{2581}{id}"), 1),
            };
            // ModelProto.pieces: piece, score, type.
            let mut message = vec![];
            field(&mut message, 1, piece.as_bytes());
            message.push(0x15);
            message.extend((-(id as f32)).to_le_bytes());
            message.extend([0x18, kind]);
            field(&mut model, 1, &message);
        }
        // ModelProto.trainer_spec: model_type is BPE, byte_fallback true; normalizer_spec.name identity.
        field(&mut model, 2, &[0x18, 2, 0x98, 2, 1]);
        let mut normalizer = vec![];
        field(&mut normalizer, 1, b"identity");
        field(&mut model, 3, &normalizer);
        std::fs::write(path, model)?;
        std::fs::write(dir.join("tokenizer_config.json"), r#"{"tokenizer_class":"LlamaTokenizer"}"#)
    }
}

/// All linear layers of a block.
pub const ALL_LINEAR: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn write_model(
    dir: &Path,
    source: &dyn TensorSource,
    shard: u64,
    name: &str,
    files: &[(&str, Value)],
) -> Result<(), Error> {
    if dir.exists() {
        return Ok(());
    }
    let staging = StagingDir::create(dir, false)?;
    let mut layout = ShardLayout::new(source.tensors(), shard);
    if let Some(index) = layout.index_json(source.tensors()) {
        staging.write_file("model.safetensors.index.json", index.as_bytes())?;
    } else {
        layout.shards[0].name = format!("{name}.safetensors");
    }
    for (name, value) in files {
        staging.write_file(name, value.to_string().as_bytes())?;
    }
    write_shards(source, &layout, staging.path(), &WriteOptions::default(), &[], &[], &())?;
    staging.publish()
}

/// A field of bytes in a protocol buffer's message.
fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    let mut len = bytes.len();
    while len > 127 {
        message.push(len as u8 | 128);
        len >>= 7;
    }
    message.push(len as u8);
    message.extend(bytes);
}

/// Small values of both signs, from a counter: splitmix64's mixing.
struct Noise(Vec<TensorInfo>);

impl TensorSource for Noise {
    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), Error> {
        let info = &self.0[tensor];
        let first = rows.start * info.row_len();
        let narrow = info.dtype == Dtype::BF16;
        let width = if narrow { 2 } else { 4 };
        for (i, bytes) in out.chunks_exact_mut(width).enumerate() {
            let mut z = (first + i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (tensor as u64) << 40;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z ^= z >> 27;
            let value = ((z >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.05;
            if narrow {
                bytes.copy_from_slice(&((value.to_bits() >> 16) as u16).to_le_bytes());
            } else {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        Ok(())
    }
}
