//! Every configuration of `fixtures/blend` gives what mergekit 0.1.5 made of it.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tenon_blend::{BlendConfig, BlendOptions, BlendPlan, Model};
use tenon_checkpoint::{Checkpoint, Dtype, TensorSource, read_json};
use tenon_merge::kernel::{self, Level};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/blend")
}

fn plan(text: &str, options: BlendOptions) -> BlendPlan {
    let config = BlendConfig::parse(text).unwrap();
    let models = config.models().into_iter().map(|reference| {
        let dir = fixtures().join("models").join(&reference.model);
        Model {
            reference: reference.clone(),
            source: Arc::new(Checkpoint::open(&dir).unwrap()),
            config: read_json(&dir.join("config.json")).unwrap(),
        }
    });
    BlendPlan::new(&config, models.collect(), None, options).unwrap()
}

/// All of a tensor, read in tiles of some rows.
fn read(source: &dyn TensorSource, tensor: usize, tile_rows: u64) -> Vec<u8> {
    let info = &source.tensors()[tensor];
    let step = tile_rows.next_multiple_of(info.row_block);
    let mut bytes = vec![];
    let mut first = 0;
    while first < info.rows() {
        let rows = first..(first + step).min(info.rows());
        let mut tile = vec![0; ((rows.end - rows.start) * info.row_bytes()) as usize];
        source.read_rows(tensor, rows.clone(), &mut tile).unwrap();
        bytes.extend(tile);
        first = rows.end;
    }
    bytes
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let mut values = vec![0.0; bytes.len() * 8 / dtype.bits() as usize];
    kernel::decode(Level::Scalar, dtype, bytes, &mut values);
    values
}

/// mergekit's own roundings, in units of the tensor's largest value: of `f32` where it computes in
/// that; of every step (difference, weighted, sum, result) where it computes in 16 bits.
fn tolerance(name: &str, dtype: Dtype) -> f64 {
    match (name, dtype) {
        (_, Dtype::F32) => 2e-6,
        // One rounding to 16 bits, which may fall the other way.
        ("linear-bf16" | "linear-gradient", _) => 1.0 / 128.0,
        ("linear-cast", _) => 1.0 / 1024.0,
        (_, _) => 2.0 / 128.0,
    }
}

#[test]
fn the_result_is_mergekits() {
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(fixtures().join("cases")).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 35, "{} cases", cases.len());
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(case.join("merge.yml")).unwrap();
        let plan = plan(&text, BlendOptions::default());
        let golden = Checkpoint::open_file(case.join("model.safetensors")).unwrap();
        let mut names: Vec<_> = plan.tensors().iter().map(|t| t.name.as_str()).collect();
        let mut expected: Vec<_> = golden.tensors().iter().map(|t| t.name.as_str()).collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected, "{name}");
        for (number, info) in plan.tensors().iter().enumerate() {
            let (index, expected) = golden.find(&info.name).unwrap();
            assert_eq!((info.dtype, &info.shape), (expected.dtype, &expected.shape), "{name} {}", info.name);
            let found = values(info.dtype, &read(&plan, number, 5));
            let expected = values(info.dtype, &read(&golden, index, 1000));
            let largest = expected.iter().fold(0.0f64, |max, v| max.max(v.abs()));
            let tolerance = tolerance(&name, info.dtype) * largest;
            let beyond = found.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() > tolerance).count();
            // Of differences in 16 bits many are of the same magnitude as the smallest that is kept. Which
            // of them torch's sort puts first is not defined; Tenon takes those that come first.
            let ties =
                if name.starts_with("ties-") && info.dtype == Dtype::BF16 { found.len() / 50 } else { 0 };
            assert!(beyond <= ties, "{name} {}: {beyond} of {} beyond {tolerance:e}", info.name, found.len());
        }
        let config: serde_json::Value = read_json(&case.join("config.json")).unwrap();
        let layers = |config: &serde_json::Value| config["num_hidden_layers"].as_u64();
        assert_eq!(layers(plan.config()), layers(&config), "{name}");
    }
}

#[test]
fn the_bytes_do_not_depend_on_tiles_threads_or_cpu() {
    for text in [
        "models: [{model: b16, parameters: {density: 0.37}}, {model: c16}]\nmerge_method: ties\nbase_model: a16\nparameters: {weight: 0.5, density: 0.61}",
        "models: [{model: b}, {model: c}]\nmerge_method: dare_ties\nbase_model: a\nparameters: {weight: 0.5, density: 0.5}",
        "models: [{model: a}, {model: far}]\nmerge_method: slerp\nbase_model: a\nparameters: {t: 0.3}",
        "models: [{model: b16}, {model: c16}]\nmerge_method: della\nbase_model: a16\nparameters: {weight: 0.5, density: 0.4}",
        "models: [{model: b}, {model: far}]\nmerge_method: nuslerp\nbase_model: a\nparameters: {weight: [0.2, 1], nuslerp_flatten: false, nuslerp_row_wise: true}",
        "models: [{model: b}, {model: c}]\nmerge_method: model_stock\nbase_model: a\nparameters: {filter_wise: true}",
        "models: [{model: b16}, {model: c16}]\nmerge_method: sce\nbase_model: a16\nparameters: {select_topk: 0.3}",
        "models: [{model: b}, {model: c}]\nmerge_method: ramplus_tl\nbase_model: a\nparameters: {epsilon: 0.01}",
        "models: [{model: a}, {model: b}, {model: far}]\nmerge_method: karcher",
    ] {
        let options = |level, threads| BlendOptions { level, threads, ..BlendOptions::default() };
        let first = plan(text, options(Level::Scalar, 1));
        let all = |plan: &BlendPlan, tile| -> Vec<_> {
            (0..plan.tensors().len()).map(|tensor| read(plan, tensor, tile)).collect()
        };
        let expected = all(&first, 1);
        for level in Level::available() {
            for (threads, tile) in [(1, 1000), (3, 7), (16, 1)] {
                let same = all(&plan(text, options(level, threads)), tile) == expected;
                assert!(same, "{level:?} {threads} {tile}");
            }
        }
    }
}

/// What is drawn is another's affair, but not how much, and not what becomes of it.
#[test]
fn a_share_is_drawn_and_the_sum_of_magnitudes_stays() {
    for method in ["dare_linear", "della_linear"] {
        let text = format!(
            "models: [{{model: b}}]\nmerge_method: {method}\nbase_model: a\nparameters: {{weight: 1, density: 0.5, epsilon: 0.4}}"
        );
        let drawn = |seed| plan(&text, BlendOptions { seed, ..BlendOptions::default() });
        let plan = drawn(1);
        let open = |name: &str| Checkpoint::open(fixtures().join("models").join(name)).unwrap();
        let (base, other) = (open("a"), open("b"));
        let (mut kept, mut total) = (0, 0);
        let (mut kept_of_large, mut large) = (0, 0);
        for (number, info) in plan.tensors().iter().enumerate() {
            let of = |source: &Checkpoint| {
                values(info.dtype, &read(source, source.find(&info.name).unwrap().0, 1000))
            };
            let (base, other, found) = (of(&base), of(&other), values(info.dtype, &read(&plan, number, 3)));
            let (mut before, mut after) = (0.0, 0.0);
            for ((b, x), y) in base.iter().zip(&other).zip(&found) {
                before += (x - b).abs();
                after += (y - b).abs();
                kept += usize::from(x != b && y != b);
                total += usize::from(x != b);
                // The differences have a standard deviation of 0.02.
                let is_large = (x - b).abs() > 0.03;
                kept_of_large += usize::from(is_large && y != b);
                large += usize::from(is_large);
            }
            assert!((before - after).abs() <= 1e-5 * before.max(1e-3), "{}: {before} {after}", info.name);
        }
        let [share, of_large] =
            [(kept, total), (kept_of_large, large)].map(|(a, b)| f64::from(a as u32) / f64::from(b as u32));
        if method == "dare_linear" {
            assert!((share - 0.5).abs() < 0.03 && (of_large - 0.5).abs() < 0.06, "{share} {of_large}");
        } else {
            // A third differs in nothing and has the lowest ranks, so chances go from 0.37 to 0.9.
            assert!((share - 0.63).abs() < 0.04 && of_large > 0.78, "{share} {of_large}");
        }
        assert!(read(&plan, 0, 9) == read(&drawn(1), 0, 9) && read(&plan, 0, 9) != read(&drawn(2), 0, 9));
    }
}

/// mergekit refuses this: it leaves `layer_types` at three entries for four layers.
#[test]
fn lists_with_a_value_a_layer_follow_the_layers() {
    let slice = |from: u64, to: u64| format!("{{sources: [{{model: q, layer_range: [{from}, {to}]}}]}}");
    let text = format!("slices: [{}, {}]\nmerge_method: passthrough", slice(1, 3), slice(0, 2));
    let plan = plan(&text, BlendOptions::default());
    let old: serde_json::Value = read_json(&fixtures().join("models/q/config.json")).unwrap();
    assert_eq!(plan.config()["num_hidden_layers"], 4);
    let types: Vec<_> = [1, 2, 0, 1].iter().map(|i| old["layer_types"][i].clone()).collect();
    assert_eq!(plan.config()["layer_types"], serde_json::Value::from(types));
    let model = Checkpoint::open(fixtures().join("models/q")).unwrap();
    let number = plan.tensors().iter().position(|t| t.name == "model.layers.2.mlp.up_proj.weight").unwrap();
    let (index, _) = model.find("model.layers.0.mlp.up_proj.weight").unwrap();
    assert_eq!(read(&plan, number, 4), read(&model, index, 100));
    assert!(plan.lies_at(number).is_some(), "a copy is left to the kernel");
}
