//! Layers and embeddings, read off the names of tensors.

use std::collections::BTreeMap;

use tenon_checkpoint::TensorInfo;

/// A name around its layer number: `model.layers.`, 7, `.mlp.up_proj.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerName<'a> {
    pub(crate) before: &'a str,
    pub(crate) layer: u64,
    pub(crate) after: &'a str,
}

/// Takes a name apart at its first component that is a number.
pub(crate) fn layer_of(name: &str) -> Option<LayerName<'_>> {
    let mut at = 0;
    for part in name.split('.') {
        let end = at + part.len();
        // Leading zeros would not come back.
        if !part.is_empty()
            && part.bytes().all(|c| c.is_ascii_digit())
            && (part.len() == 1 || !part.starts_with('0'))
            && end < name.len()
            && let Ok(layer) = part.parse()
        {
            return Some(LayerName { before: &name[..at], layer, after: &name[end..] });
        }
        at = end + 1;
    }
    None
}

/// Number of layers of each stack, by what stands before the layer number in names.
///
/// A list of a few things that are no layers (`lm_heads.0.weight`) is a stack too, as far as names tell.
pub(crate) fn stacks(tensors: &[TensorInfo]) -> BTreeMap<&str, u64> {
    let mut stacks = BTreeMap::new();
    for name in tensors.iter().filter_map(|tensor| layer_of(&tensor.name)) {
        let layers: &mut u64 = stacks.entry(name.before).or_default();
        *layers = (*layers).max(name.layer.saturating_add(1));
    }
    stacks
}

/// Whether a tensor outside the layers comes before them in the model.
pub(crate) fn comes_first(name: &str) -> bool {
    let parts = || name.split('.');
    let is_embedding = |part: &str| {
        ["wte", "wpe", "embed_in", "word_embeddings_layernorm"].contains(&part)
            || (part.contains("embed") && part != "embed_out")
    };
    parts().any(is_embedding)
}

/// Names of input embeddings.
pub(crate) const EMBEDDINGS: [&str; 6] = [
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "backbone.embeddings.weight",
];

/// Names of output embeddings.
const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// Names of what else has a row or a value for each token.
const BY_TOKEN: [&str; 5] =
    ["lm_head.bias", "lm_head.linear.weight", "lm_head.linear.bias", "output_layer.weight", "shared.weight"];

/// Whether a name is one of these, or ends with one as its last parts.
pub(crate) fn ends(name: &str, known: &[&str]) -> bool {
    let rest = |end: &&str| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    known.iter().any(rest)
}

pub(crate) fn is_head(name: &str) -> bool {
    ends(name, &HEADS)
}

/// Whether a tensor has a row or a value for each token.
pub(crate) fn is_by_token(name: &str) -> bool {
    layer_of(name).is_none()
        && (is_head(name)
            || ends(name, &EMBEDDINGS)
            || ends(name, &BY_TOKEN)
            // Of InternLM 2. Deeper in a model outputs are of other things.
            || name == "output.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_apart_at_the_first_number() {
        let name = layer_of("model.layers.12.mlp.experts.3.up_proj.weight").unwrap();
        assert_eq!(
            (name.before, name.layer, name.after),
            ("model.layers.", 12, ".mlp.experts.3.up_proj.weight")
        );
        assert_eq!(layer_of("h.0.attn.c_attn.weight").unwrap().before, "h.");
        for none in ["lm_head.weight", "a.01.b", "x.99999999999999999999.y", "model.layers.3", ""] {
            assert_eq!(layer_of(none), None, "{none}");
        }
    }

    #[test]
    fn embeddings_come_first() {
        for name in ["model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight"] {
            assert!(comes_first(name), "{name}");
        }
        for name in ["lm_head.weight", "model.norm.weight", "embed_out.weight", "ln_f.bias"] {
            assert!(!comes_first(name), "{name}");
        }
    }

    #[test]
    fn what_has_a_row_for_each_token_is_known() {
        for name in ["model.embed_tokens.weight", "lm_head.weight", "output.weight", "lm_head.bias"] {
            assert!(is_by_token(name), "{name}");
        }
        for name in ["model.layers.0.output.weight", "a.output.weight", "wpe.weight", "my_lm_head.weight"] {
            assert!(!is_by_token(name), "{name}");
        }
    }
}
