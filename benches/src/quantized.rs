//! Bases that are stored quantized, in true shapes.

use std::path::Path;

use serde_json::{Value, json};
use tenon_checkpoint::{Dtype, Error, Rows, TensorInfo, TensorSource};

use crate::{LlamaShape, write_model};

/// How a base's linear layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// bitsandbytes, blocks of 64.
    Nf4,
    /// GPTQ, 4 bit in groups of 128.
    Gptq,
    /// FP8 with a scale for each block of 128 x 128.
    Fp8,
}

impl Stored {
    /// All of them, by their names.
    pub const ALL: [(&'static str, Self); 3] = [("nf4", Self::Nf4), ("gptq", Self::Gptq), ("fp8", Self::Fp8)];

    fn config(self) -> Value {
        match self {
            Self::Nf4 => {
                json!({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": false})
            }
            Self::Gptq => {
                json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true,
                "checkpoint_format": "gptq"})
            }
            Self::Fp8 => json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                "weight_block_size": [128, 128]}),
        }
    }

    /// The tensors that stand for the weight of `module`, `[out, input]`.
    fn tensors(self, module: &str, out: u64, input: u64) -> Vec<(TensorInfo, Content)> {
        let tensor = |name: &str, dtype, shape: &[u64], content| {
            (TensorInfo::new(format!("{module}.{name}"), dtype, shape.to_vec()), content)
        };
        match self {
            Self::Nf4 => {
                let state =
                    json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [out, input]});
                let state = state.to_string().into_bytes();
                let len = state.len() as u64;
                vec![
                    tensor("weight", Dtype::U8, &[out * input / 2, 1], Content::Noise),
                    tensor("weight.absmax", Dtype::F32, &[out * input / 64], Content::Scales),
                    tensor("weight.quant_map", Dtype::F32, &[16], Content::Bytes(nf4())),
                    tensor("weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[len], Content::Bytes(state)),
                ]
            }
            Self::Gptq => {
                let groups = (0..input as u32).flat_map(|i| (i / 128).to_le_bytes()).collect();
                vec![
                    tensor("qweight", Dtype::I32, &[input / 8, out], Content::Noise),
                    tensor("qzeros", Dtype::I32, &[input / 128, out / 8], Content::Noise),
                    tensor("scales", Dtype::F16, &[input / 128, out], Content::Scales),
                    tensor("g_idx", Dtype::I32, &[input], Content::Bytes(groups)),
                ]
            }
            Self::Fp8 => vec![
                tensor("weight", Dtype::F8_E4M3, &[out, input], Content::Noise),
                tensor(
                    "weight_scale_inv",
                    Dtype::F32,
                    &[out.div_ceil(128), input.div_ceil(128)],
                    Content::Scales,
                ),
            ],
        }
    }
}

impl LlamaShape {
    /// Writes the base to `dir`, stored so, unless it is there.
    pub fn write_quantized_base(&self, dir: &Path, stored: Stored) -> Result<(), Error> {
        let linears = self.linears();
        let mut tensors = vec![];
        for info in self.base_tensors() {
            let module = info.name.strip_suffix(".weight").unwrap_or_default().to_string();
            match linears.iter().find(|(part, ..)| module.ends_with(part)) {
                Some((_, out, input)) => tensors.extend(stored.tensors(&module, *out, *input)),
                None => tensors.push((info, Content::Noise)),
            }
        }
        let (infos, contents) = tensors.into_iter().unzip();
        let mut config = self.config();
        config["quantization_config"] = stored.config();
        write_model(dir, &Source { infos, contents }, 5_000_000_000, "model", &[("config.json", config)])
    }
}

/// What a tensor holds.
#[derive(Debug)]
enum Content {
    /// Bytes of any value but those that are no numbers as E4M3 or bf16.
    Noise,
    /// 2⁻⁷ throughout.
    Scales,
    Bytes(Vec<u8>),
}

struct Source {
    infos: Vec<TensorInfo>,
    contents: Vec<Content>,
}

impl TensorSource for Source {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), Error> {
        let info = &self.infos[tensor];
        let first = rows.start * info.row_bytes();
        match (&self.contents[tensor], info.dtype) {
            (Content::Bytes(bytes), _) => out.copy_from_slice(&bytes[first as usize..][..out.len()]),
            (Content::Scales, Dtype::F16) => {
                out.chunks_exact_mut(2).for_each(|c| c.copy_from_slice(&[0, 0x20]))
            }
            (Content::Scales, _) => {
                let scale = (1.0f32 / 128.0).to_le_bytes();
                out.chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&scale));
            }
            (Content::Noise, dtype) => {
                // bf16 of exponents about 0, so that nothing overflows.
                let mask = if dtype == Dtype::BF16 { 0xbf } else { 0x77 };
                for (i, byte) in out.iter_mut().enumerate() {
                    let z =
                        (first + i as u64 + 1 + ((tensor as u64) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    *byte = (z >> 56) as u8 & mask;
                }
            }
        }
        Ok(())
    }
}

/// The values of NF4 (Dettmers et al. 2023), to four digits.
fn nf4() -> Vec<u8> {
    let positive = [0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0f32];
    let negative = [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0f32];
    negative.iter().chain(&positive).flat_map(|value| value.to_le_bytes()).collect()
}
