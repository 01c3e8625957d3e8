//! An adapter as llama.cpp and what is built on it take one: LoRA in GGUF, for the GGUF of its base.
//!
//! The other way than [`gguf_adapter`](crate::gguf_adapter), with the same layout. Which tensors an adapter
//! changes, by which factors and how much, is what a merge plan of it says, so that whatever can be merged and
//! comes down to one product a tensor can be written: rsLoRA, ranks and alphas of their own, other tools'
//! adapters. The scale is multiplied into `B`, and no alpha is written.
//!
//! A tensor `X` of the GGUF has rows of the base's tensors, in whatever order ([`Provenance`]); the rows of
//! `X.lora_b` are those of their factors. Where `X` is made of several tensors, their factors go side by side,
//! and rows have zeros for what is not theirs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use tenon_checkpoint::{Error as CheckpointError, Observer, Sha256, StagingDir};
use tenon_gguf::{GgmlType, GgufTensor, Metadata, ModelFiles, Origins, Provenance, Value, header};
use tenon_merge::{Addition, Factors, MergeOptions, MergePlan};

use crate::adapter::Adapters;
use crate::artifact::Written;
use crate::base::Base;
use crate::gguf::{MAGIC, STAGED};
use crate::{Error, GgufWritten};

/// Architectures of which llama.cpp multiplies weights without asking for their adapters (build 10488,
/// `ggml_mul_mat` on a layer's weight in `src/models/`).
const DEAF: [&str; 8] =
    ["plm", "minicpm3", "kimi-linear", "kimi-k3", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"];

/// Writes an adapter, of any tool that is read, as a LoRA adapter in GGUF for the GGUF of its base: what
/// llama.cpp takes as `--lora`.
///
/// # Errors
/// For an adapter that llama.cpp would not apply, or apply otherwise; nothing is written then.
pub fn gguf_adapter(
    base: &Path,
    adapter: &Path,
    out: &Path,
    overwrite: bool,
    observer: &dyn Observer,
) -> Result<GgufWritten, Error> {
    let start = Instant::now();
    let planned = GgufLora::plan(base, adapter)?;
    StagingDir::need_bytes(out, planned.len())?;
    let staging = StagingDir::create_for_file(out, MAGIC, overwrite)?;
    let Written { sha256, bytes, .. } = planned.write(&staging, observer)?;
    staging.publish_file(STAGED, out, overwrite)?;
    Ok(GgufWritten { path: out.into(), digest: sha256, bytes, elapsed: start.elapsed() })
}

/// An adapter on its way into a GGUF: headers read, nothing written.
pub(crate) struct GgufLora {
    plan: MergePlan,
    header: Vec<u8>,
    len: u64,
    pairs: Vec<Pair>,
}

/// Why an adapter is none for llama.cpp.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unfit {
    /// What there is in it that llama.cpp does not do.
    #[error("{0}")]
    Reason(String),
    #[error(transparent)]
    Error(#[from] Error),
}

impl From<Unfit> for Error {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Error(error) => error,
            Unfit::Reason(reason) => Error::NotForLlamaCpp { reason },
        }
    }
}

/// Both factors of one tensor of the GGUF.
struct Pair {
    /// Outermost first; 2 axes, or 3 with experts.
    shape: Vec<u64>,
    rank: usize,
    /// One for each expert.
    blocks: Vec<Vec<Piece>>,
}

/// What one tensor of the base gives to a block.
struct Piece {
    /// Number of the base's tensor.
    tensor: usize,
    /// Its rank, and where in the block's that begins.
    rank: usize,
    first: usize,
    /// Row of the block, and of the base's tensor.
    rows: Vec<(usize, usize)>,
}

impl GgufLora {
    /// Plans the file of an adapter for a base; finds what llama.cpp would not do, or do otherwise.
    pub(crate) fn plan(base: &Path, adapter: &Path) -> Result<Self, Unfit> {
        let opened = Base::open(base)?;
        let adapters = Adapters::open(&[(adapter.to_path_buf(), 1.0)], &opened, false)?;
        let plan = adapters.plan(&opened, None, MergeOptions::default())?;
        let model = Provenance::plan(opened.config(), opened.tensors(), &ModelFiles::directory(base))
            .map_err(Error::from)?;
        if DEAF.contains(&model.architecture()) {
            let reason =
                format!("llama.cpp does not ask for adapters of all weights of {}", model.architecture());
            return Err(Unfit::Reason(reason));
        }
        let pairs = pairs(&plan, opened.tensors().len(), &model)?;
        let text = |text: &str| Value::String(text.into());
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", text(model.architecture()));
        metadata.set("general.type", text("adapter"));
        metadata.set("adapter.type", text("lora"));
        let tensors: Vec<_> = pairs.iter().flat_map(|(name, pair)| pair.tensors(name)).collect();
        let (header, len) = header(&metadata, &tensors);
        Ok(Self { plan, header, len, pairs: pairs.into_values().collect() })
    }

    /// Size of the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Writes it. One pair of factors is held at a time.
    pub(crate) fn write(&self, staging: &StagingDir, observer: &dyn Observer) -> Result<Written, Error> {
        let path = staging.path().join(STAGED);
        let io = |verb| CheckpointError::io(verb, &path);
        let mut file = std::fs::File::create_new(&path).map_err(io("create"))?;
        let mut hash = Sha256::new();
        let mut put = |bytes: &[u8]| {
            hash.update(bytes);
            file.write_all(bytes).map_err(io("write"))
        };
        put(&self.header)?;
        for pair in &self.pairs {
            let (mut a, mut b) = (pair.zeros(0), pair.zeros(1));
            for (block, pieces) in pair.blocks.iter().enumerate() {
                for piece in pieces {
                    let factors = self.plan.factors(piece.tensor)?.expect("planned as a product");
                    pair.fill(block, piece, &factors, &mut a, &mut b);
                }
            }
            for values in [a, b] {
                if observer.cancelled() {
                    return Err(CheckpointError::Cancelled.into());
                }
                let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                bytes.resize(bytes.len().next_multiple_of(tenon_gguf::ALIGNMENT as usize), 0);
                put(&bytes)?;
            }
        }
        file.sync_all().map_err(io("sync"))?;
        for open in self.plan.adapter().files() {
            open.check_unchanged()?;
        }
        Ok(Written { sha256: hash.finish(), bytes: self.len, quality: None })
    }
}

impl Pair {
    /// The tensors that a file has of it.
    fn tensors(&self, name: &str) -> [GgufTensor; 2] {
        ["lora_a", "lora_b"]
            .into_iter()
            .enumerate()
            .map(|(which, factor)| GgufTensor {
                name: format!("{name}.{factor}"),
                ggml_type: GgmlType::F32,
                shape: self.factor_shape(which),
            })
            .collect::<Vec<_>>()
            .try_into()
            .expect("two")
    }

    /// Of `A` (0), `[.., rank, in]`, or of `B` (1), `[.., out, rank]`.
    fn factor_shape(&self, which: usize) -> Vec<u64> {
        let mut shape = self.shape.clone();
        let axis = shape.len() - 2 + which;
        shape[axis] = self.rank as u64;
        shape
    }

    fn zeros(&self, which: usize) -> Vec<f32> {
        vec![0.0; self.factor_shape(which).iter().product::<u64>() as usize]
    }

    fn fill(&self, block: usize, piece: &Piece, factors: &Factors, a: &mut [f32], b: &mut [f32]) {
        let [.., out, cols] = self.shape[..] else { unreachable!("a matrix") };
        let (out, cols) = (out as usize, cols as usize);
        let at = (block * self.rank + piece.first) * cols;
        for (to, from) in a[at..].iter_mut().zip(factors.right.iter()) {
            *to = *from as f32;
        }
        for (to, from) in &piece.rows {
            let at = (block * out + to) * self.rank + piece.first;
            let left = &factors.left[from * piece.rank..][..piece.rank];
            for (to, from) in b[at..].iter_mut().zip(left) {
                *to = (from * factors.scale) as f32;
            }
        }
    }
}

/// The pairs of an adapter by the names of the tensors that they belong to.
fn pairs(plan: &MergePlan, base: usize, model: &Provenance) -> Result<BTreeMap<String, Pair>, Unfit> {
    let mut ranks = BTreeMap::new();
    // Every row of what is adapted must be in the file, once.
    let mut rows_left: BTreeMap<usize, i64> = BTreeMap::new();
    for (tensor, planned) in plan.planned().enumerate() {
        let name = &planned.info.name;
        match plan.addition(tensor) {
            Addition::Nothing => {}
            Addition::Product(rank) if tensor < base => {
                ranks.insert(tensor, rank);
                rows_left.insert(tensor, planned.info.rows() as i64);
            }
            _ => {
                let how = match &planned.methods[..] {
                    [] => "whole".to_string(),
                    methods => format!("by {}", methods.join(" and ")),
                };
                return Err(Unfit::Reason(format!(
                    "it changes {name} {how}, and llama.cpp adds a product of two factors"
                )));
            }
        }
    }
    let mut pairs = BTreeMap::new();
    for name in model.names() {
        let Some((shape, Origins::Rows(rows))) = model.of(name) else { continue };
        let [.., out, _] = shape[..] else { continue };
        let mut blocks: Vec<BTreeMap<usize, Vec<(usize, usize)>>> = vec![];
        for (row, (tensor, there)) in rows.into_iter().enumerate() {
            let block = row / out as usize;
            if blocks.len() <= block {
                blocks.resize_with(block + 1, BTreeMap::new);
            }
            if ranks.contains_key(&tensor) {
                blocks[block].entry(tensor).or_default().push((row % out as usize, there as usize));
                *rows_left.entry(tensor).or_default() -= 1;
            }
        }
        if blocks.iter().all(BTreeMap::is_empty) {
            continue;
        }
        if !is_asked_for(name) {
            return Err(Unfit::Reason(format!(
                "it adapts {name}, of which llama.cpp does not apply adapters"
            )));
        }
        let mut rank = 0;
        let blocks = blocks.into_iter().map(|pieces| {
            let mut first = 0;
            let pieces = pieces.into_iter().map(|(tensor, rows)| {
                let piece = Piece { tensor, rank: ranks[&tensor], first, rows };
                first += piece.rank;
                piece
            });
            let pieces: Vec<_> = pieces.collect();
            rank = rank.max(first);
            pieces
        });
        let blocks = blocks.collect();
        pairs.insert(name.to_string(), Pair { shape, rank, blocks });
    }
    if let Some((tensor, _)) = rows_left.iter().find(|(_, left)| **left != 0) {
        let name = plan.planned().nth(*tensor).map(|planned| planned.info.name.clone()).unwrap_or_default();
        let reason = format!("it adapts {name}, which is no tensor of its own, row by row, in a GGUF");
        return Err(Unfit::Reason(reason));
    }
    if pairs.is_empty() {
        return Err(Unfit::Reason("it adds nothing to any weight".into()));
    }
    Ok(pairs)
}

/// Whether llama.cpp looks for adapters of a tensor where it multiplies by it: projections of attention and
/// feed-forward layers, experts included, and the head. `wk_b` and `wv_b` it multiplies by themselves.
fn is_asked_for(name: &str) -> bool {
    if name == "output.weight" {
        return true;
    }
    let Some(part) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map(|(_, part)| part)
    else {
        return false;
    };
    let Some(part) = part.strip_suffix(".weight") else { return false };
    let attention =
        ["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_q_a", "attn_q_b", "attn_kv_a_mqa"];
    let layers = ["ffn_gate", "ffn_up", "ffn_down"];
    let layer = part.trim_end_matches("_exps").trim_end_matches("_shexp");
    attention.contains(&part) || layers.contains(&layer)
}
