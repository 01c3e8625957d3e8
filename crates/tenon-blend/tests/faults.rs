//! Models that do not fit one another, each with its error.
#![allow(clippy::unwrap_used)] // a test file

use std::sync::Arc;

use serde_json::{Value, json};
use tenon_blend::{BlendConfig, BlendOptions, BlendPlan, Model};
use tenon_checkpoint::{Dtype, Error, Rows, TensorInfo, TensorSource};

/// Floats near the end of their range; of integers, the model's number.
struct Filled {
    infos: Vec<TensorInfo>,
    number: u8,
}

impl TensorSource for Filled {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }
    fn read_rows(&self, tensor: usize, _: Rows, out: &mut [u8]) -> Result<(), Error> {
        match self.infos[tensor].dtype {
            Dtype::F32 => out.as_chunks_mut::<4>().0.iter_mut().for_each(|b| *b = 3e38f32.to_le_bytes()),
            _ => out.fill(self.number),
        }
        Ok(())
    }
}

type Tensors = &'static [(&'static str, Dtype, &'static [u64])];

fn attempt(text: &str, models: &[Tensors]) -> Result<BlendPlan, String> {
    let config = BlendConfig::parse(text).map_err(|e| e.to_string())?;
    let models = config.models().into_iter().zip(models).enumerate().map(|(number, (reference, tensors))| {
        let info =
            |(name, dtype, shape): &(&str, Dtype, &[u64])| TensorInfo::new(*name, *dtype, shape.to_vec());
        let infos = tensors.iter().map(info).collect();
        let source = Arc::new(Filled { infos, number: number as u8 });
        Model { reference: reference.clone(), source, config: json!({}) as Value }
    });
    BlendPlan::new(&config, models.collect(), None, BlendOptions::default()).map_err(|e| e.to_string())
}

const TWO: &str = "models: [{model: a}, {model: b}]\nmerge_method: linear\nparameters: {weight: 1}";
const SLICE: &str = "slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\nmerge_method: passthrough";
const W: Tensors = &[("w", Dtype::F32, &[2, 3])];
const LAYER: Tensors = &[("model.layers.0.w", Dtype::F32, &[2])];

#[test]
fn what_does_not_fit_is_said() {
    use Dtype::{F32, U8};
    let cases: [(&str, &[Tensors], &str); 11] = [
        (TWO, &[W, &[("v", F32, &[2, 3])]], "tensor \"w\" is in a and not in b"),
        (TWO, &[W, &[("w", F32, &[3, 2])]], "has shape [2, 3] in a and [3, 2] in b"),
        (
            TWO,
            &[&[("embed_tokens.weight", F32, &[9, 4])], &[("embed_tokens.weight", F32, &[8, 4])]],
            "their vocabularies differ",
        ),
        (TWO, &[W, &[("w", U8, &[2, 3])]], "elements of U8 in b"),
        (TWO, &[LAYER, &[("model.layers.1.w", F32, &[2])]], "a has 1 layers, b has 2"),
        (SLICE, &[LAYER], "a has 1 layers, the slice takes layers 0 to 2"),
        (SLICE, &[W], "no tensors with a layer number"),
        (SLICE, &[&[("encoder.0.w", F32, &[2]), ("decoder.0.w", F32, &[2])]], "2 stacks of layers"),
        ("models: [{model: a}]\nmerge_method: linear", &[W], "parameter weight is missing for \"w\" of a"),
        (
            "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: -1}}]\nmerge_method: linear",
            &[W, W],
            "weights of all models sum to 0",
        ),
        (
            "models: [{model: b}]\nmerge_method: della\nbase_model: a\nparameters: {weight: 1, density: 0.1}",
            &[W, W],
            "chances from -0.04999999999999999 to 0.25 for \"w\" of b",
        ),
    ];
    for (text, models, expected) in cases {
        let found = attempt(text, models).err().unwrap_or_else(|| panic!("{expected}: planned"));
        assert!(found.contains(expected), "{expected}: {found}");
    }
}

#[test]
fn what_cannot_be_computed_is_said_when_it_is_read() {
    let ints: Tensors = &[("position_ids", Dtype::I64, &[4])];
    let plan = attempt(TWO, &[ints, ints]).unwrap();
    let error = plan.read_rows(0, 0..4, &mut [0; 32]).unwrap_err().to_string();
    assert!(error.contains("holds I64") && error.contains("differs between a and b"), "{error}");
    let plan = attempt(&TWO.replace("weight: 1", "weight: 1, normalize: false"), &[W, W]).unwrap();
    let error = plan.read_rows(0, 0..2, &mut [0; 24]).unwrap_err().to_string();
    assert!(error.contains("\"w\"") && error.contains("row 0 is not finite as F32"), "{error}");
}
