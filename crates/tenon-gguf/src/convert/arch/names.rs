//! Tables of tensor names: the checkpoint's on the left, GGUF's on the right, `{}` for the layer.
//!
//! Source: `gguf-py/gguf/tensor_mapping.py` and `constants.py` of llama.cpp build 10488.

/// A table of names without `.weight` and `.bias`.
pub(crate) type Names = &'static [(&'static str, &'static str)];

/// What most decoders share, but for the feed-forward.
pub(crate) const DECODER: Names = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
    ("model.layers.{}.self_attn.q_proj", "blk.{}.attn_q"),
    ("model.layers.{}.self_attn.k_proj", "blk.{}.attn_k"),
    ("model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"),
    ("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
    ("model.layers.{}.self_attn.q_norm", "blk.{}.attn_q_norm"),
    ("model.layers.{}.self_attn.k_norm", "blk.{}.attn_k_norm"),
    ("model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"),
];

/// A feed-forward of three matrices.
pub(crate) const DENSE: Names = &[
    ("model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"),
    ("model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"),
    ("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
];

/// Mixtures of experts by the names that Qwen and DeepSeek gave them, experts stacked.
pub(crate) const EXPERTS: Names = &[
    ("model.layers.{}.mlp.gate", "blk.{}.ffn_gate_inp"),
    ("model.layers.{}.mlp.experts.gate_proj", "blk.{}.ffn_gate_exps"),
    ("model.layers.{}.mlp.experts.up_proj", "blk.{}.ffn_up_exps"),
    ("model.layers.{}.mlp.experts.down_proj", "blk.{}.ffn_down_exps"),
];

/// What a layer that predicts a token more has beside the rest.
pub(crate) const NEXT_TOKENS: Names = &[
    ("model.layers.{}.eh_proj", "blk.{}.nextn.eh_proj"),
    ("model.layers.{}.enorm", "blk.{}.nextn.enorm"),
    ("model.layers.{}.hnorm", "blk.{}.nextn.hnorm"),
    ("model.layers.{}.shared_head.head", "blk.{}.nextn.shared_head_head"),
    ("model.layers.{}.shared_head.norm", "blk.{}.nextn.shared_head_norm"),
];

/// The GGUF name of a checkpoint's tensor.
pub(crate) fn map(tables: &[Names], name: &str, layers: u64) -> Option<String> {
    let stems = [".weight", ".bias"].iter().filter_map(|suffix| Some((name.strip_suffix(suffix)?, *suffix)));
    [(name, "")].into_iter().chain(stems).find_map(|(stem, suffix)| {
        let entries = tables.iter().flat_map(|table| table.iter());
        entries.into_iter().find_map(|(theirs, ours)| {
            let Some((before, after)) = theirs.split_once("{}") else {
                return (stem == *theirs).then(|| format!("{ours}{suffix}"));
            };
            let layer = stem.strip_prefix(before)?.strip_suffix(after)?;
            // As Python writes numbers: no sign, no leading zero.
            let number: u64 = layer.parse().ok().filter(|n| *n < layers)?;
            (number.to_string() == layer).then(|| format!("{}{suffix}", ours.replace("{}", layer)))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_within_the_layers() {
        let map = |name| map(&[DECODER, DENSE], name, 12);
        assert_eq!(map("model.layers.11.mlp.up_proj.weight").as_deref(), Some("blk.11.ffn_up.weight"));
        assert_eq!(map("model.layers.3.self_attn.q_proj.bias").as_deref(), Some("blk.3.attn_q.bias"));
        assert_eq!(map("lm_head.weight").as_deref(), Some("output.weight"));
        for none in [
            "model.layers.12.mlp.up_proj.weight",
            "model.layers.01.mlp.up_proj.weight",
            "lm_head.weights",
            "model.layers.-1.mlp.up_proj.weight",
        ] {
            assert_eq!(map(none), None, "{none}");
        }
    }
}
