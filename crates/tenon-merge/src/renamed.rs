//! Parts of a model that checkpoints call otherwise than the model in memory does.
//!
//! Transformers 5 gave modules one name across families and translates when it
//! reads or writes a checkpoint; an adapter has the names of the model that it
//! was trained on, whichever version that was. Source: transformers 5.23.0,
//! `conversion_mapping.py`.

/// Runs of components that stand for each other. In the order of what most models need.
const RENAMED: &[(&str, &str)] = &[
    // Mixtral, MiniMax, PhiMoE, Kimi.
    ("mlp", "block_sparse_moe"),
    ("router", "gate"),
    // GPT-NeoX.
    ("lm_head", "embed_out"),
    // Masked language models: one bias under two names.
    ("predictions.decoder.bias", "predictions.bias"),
    ("lm_head.decoder.bias", "lm_head.bias"),
    // Granite.
    ("experts.gate_up_proj", "input_linear.weight"),
    ("experts.down_proj", "output_linear.weight"),
    ("router", "router.layer"),
    // Aria.
    ("experts.gate_up_proj", "experts.fc1.weight"),
    ("experts.down_proj", "experts.fc2.weight"),
    // Hunyuan, Laguna, Step.
    ("shared_experts", "shared_mlp"),
    ("shared_experts", "shared_expert"),
    ("mlp.shared_experts", "share_expert"),
    ("mlp.gate", "mlp.router.gate"),
    ("mlp", "moe"),
    // OLMo hybrid, A.X.
    ("input_layernorm", "attention_layer_norm"),
    ("post_attention_layernorm", "feedforward_layer_norm"),
    ("mlp.post_mlp_layernorm", "post_mlp_layernorm"),
    // Bailing.
    ("embed_tokens", "word_embeddings"),
    ("self_attn", "attention"),
    ("o_proj", "dense"),
    // Kimi.
    ("forget_gate.f_a_proj", "f_a_proj"),
    ("forget_gate.f_b_proj", "f_b_proj"),
    // DeepSeek V4.
    ("self_attn", "attn"),
    ("mlp", "ffn"),
    ("gate_proj", "wgate"),
    ("gate_proj", "w1"),
    ("down_proj", "w2"),
    ("up_proj", "w3"),
    ("q_a_proj", "wq_a"),
    ("q_b_proj", "wq_b"),
    ("kv_proj", "wkv"),
    ("o_a_proj", "wo_a"),
    ("o_b_proj", "wo_b"),
    ("embed_tokens", "embed"),
    ("lm_head", "head"),
    // Image-text models.
    ("layers", "blocks"),
    ("vision_tower", "vision_model"),
];

/// Most renamings that one name needs: the block, the module in it, and a layer's own.
const DEEPEST: usize = 3;

/// Other names of `name`, those with fewest parts renamed first.
pub(crate) fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![name.to_string()];
    let mut last = 0..1;
    for _ in 0..DEEPEST {
        let end = last.end;
        for at in last {
            for (here, there) in RENAMED {
                for (from, to) in [(here, there), (there, here)] {
                    if let Some(other) = replace(&all[at], from, to)
                        && !all.contains(&other)
                    {
                        all.push(other);
                    }
                }
            }
        }
        last = end..all.len();
    }
    all.remove(0);
    all
}

/// `name` with the first run of components `from` replaced.
fn replace(name: &str, from: &str, to: &str) -> Option<String> {
    let is_whole = |at: usize| {
        let (front, back) = (&name[..at], &name[at + from.len()..]);
        (front.is_empty() || front.ends_with('.')) && (back.is_empty() || back.starts_with('.'))
    };
    let at = name.match_indices(from).map(|(at, _)| at).find(|at| is_whole(*at))?;
    Some(format!("{}{to}{}", &name[..at], &name[at + from.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_components_are_renamed() {
        let has = |name: &str, other: &str| spellings(name).iter().any(|s| s == other);
        assert!(has("model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"));
        assert!(has("model.layers.0.mlp.router.weight", "model.layers.0.block_sparse_moe.gate.weight"));
        assert!(has("lm_head.weight", "embed_out.weight"));
        assert!(has("embed_out.weight", "lm_head.weight"));
        assert!(has(
            "model.layers.1.block_sparse_moe.experts.gate_up_proj",
            "model.layers.1.block_sparse_moe.input_linear.weight"
        ));
        assert!(!has("my_lm_head.weight", "my_embed_out.weight"));
    }
}
