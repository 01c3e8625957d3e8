//! Several adapters merged one after the other, against PEFT's `merge_and_unload` of each in turn.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test file

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tenon_checkpoint::{Checkpoint, Dtype, Rows, TensorInfo, TensorSource, read_json};
use tenon_merge::{Adapter, Error, Fate, MergeOptions, MergePlan, OutputDtype};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn stack_on(
    base: Arc<dyn TensorSource>,
    list: &[(&str, f64)],
    options: MergeOptions,
) -> Result<MergePlan, Error> {
    let config: Value = read_json(&fixtures().join("peft-combine/base/config.json")).unwrap();
    let open = |name: &str| Arc::new(Adapter::open(fixtures().join("peft-stack").join(name)).unwrap());
    let adapters = list.iter().map(|(name, weight)| (open(name), *weight)).collect();
    MergePlan::stack(base, &config, adapters, options)
}

fn base() -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(fixtures().join("peft-combine/base")).unwrap())
}

fn bytes(source: &dyn TensorSource, tensor: usize) -> Vec<u8> {
    let info = &source.tensors()[tensor];
    let mut bytes = vec![0; info.bytes() as usize];
    source.read_rows(tensor, 0..info.rows(), &mut bytes).unwrap();
    bytes
}

fn values(source: &dyn TensorSource, tensor: usize) -> Vec<f64> {
    assert_eq!(source.tensors()[tensor].dtype, Dtype::F32);
    bytes(source, tensor).chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()).into()).collect()
}

#[test]
fn every_case_is_as_peft_makes_it() {
    let cases: Map<String, Value> = read_json(&fixtures().join("peft-stack/cases.json")).unwrap();
    for (name, case) in &cases {
        let list: Vec<(String, f64)> = serde_json::from_value(case.clone()).unwrap();
        let list: Vec<_> = list.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        let plan = stack_on(base(), &list, MergeOptions::default()).unwrap();
        let golden = fixtures().join(format!("peft-stack/{name}.safetensors"));
        let golden = Checkpoint::open_file(golden).unwrap();
        let mut changed: Vec<&str> =
            plan.planned().filter(|p| p.fate != Fate::Copied).map(|p| p.info.name.as_str()).collect();
        let mut expected: Vec<&str> = golden.tensors().iter().map(|t| t.name.as_str()).collect();
        changed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(changed, expected, "{name}");
        for (g, info) in golden.tensors().iter().enumerate() {
            let i = plan.tensors().iter().position(|t| t.name == info.name).unwrap();
            let (found, expected) = (values(&plan, i), values(&golden, g));
            let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            let off = found.iter().zip(&expected).fold(0.0f64, |m, (a, b)| m.max((a - b).abs())) / largest;
            println!("{name}: {} within {off:.1e}", info.name);
            assert!(off < 2e-6, "{name}: {} is off by {off:e}", info.name);
        }
    }
    assert!(cases.len() >= 11);
}

/// The base in a narrower type.
struct Narrowed(MergePlan);

impl TensorSource for Narrowed {
    fn tensors(&self) -> &[TensorInfo] {
        self.0.tensors()
    }
    fn read_rows(&self, tensor: usize, rows: Rows, out: &mut [u8]) -> Result<(), tenon_checkpoint::Error> {
        self.0.read_rows(tensor, rows, out)
    }
}

#[test]
fn the_result_is_rounded_once() {
    // A base of bfloat16: merged in one go in f32 and rounded, and merged to bfloat16 at once.
    let nothing = [("second", 0.0)];
    let bf16 = MergeOptions { dtype: OutputDtype::Bf16, ..MergeOptions::default() };
    let narrow = || Arc::new(Narrowed(stack_on(base(), &nothing, bf16.clone()).unwrap()));
    let list = [("lora", 0.4), ("second", 1.0), ("dora", 1.0)];
    let plan = stack_on(narrow(), &list, MergeOptions::default()).unwrap();
    let wide = MergeOptions { dtype: OutputDtype::F32, ..MergeOptions::default() };
    let wide = stack_on(narrow(), &list, wide).unwrap();
    let mut edited = 0;
    for (tensor, planned) in plan.planned().enumerate() {
        assert_eq!(planned.info.dtype, Dtype::BF16, "{}", planned.info.name);
        let found = bytes(&plan, tensor);
        for (value, found) in values(&wide, tensor).into_iter().zip(found.chunks(2)) {
            // A tie in f32 could have been none in f64; there is none here.
            let expected = half::bf16::from_f32(value as f32).to_le_bytes();
            assert_eq!(found, expected, "{}", planned.info.name);
        }
        edited += usize::from(planned.fate == Fate::Edited);
    }
    assert_eq!(edited, 5);
    let methods = plan.planned().find(|p| p.info.name.ends_with("q_proj.weight")).unwrap().methods;
    assert_eq!(methods, ["LoRA", "rsLoRA", "DoRA"]);
}

#[test]
fn any_cut_into_rows_gives_the_same() {
    // RoAd takes rows in groups of four; the LoRA after it does not.
    let list = [("road", 1.0), ("oft", 1.0), ("lora", -0.3)];
    let plan = stack_on(base(), &list, MergeOptions::default()).unwrap();
    for (tensor, info) in plan.tensors().iter().enumerate() {
        let whole = bytes(&plan, tensor);
        let mut cut = vec![];
        for row in (0..info.rows()).step_by(info.row_block as usize) {
            let end = (row + info.row_block).min(info.rows());
            let mut part = vec![0; ((end - row) * info.row_bytes()) as usize];
            plan.read_rows(tensor, row..end, &mut part).unwrap();
            cut.extend(part);
        }
        assert!(whole == cut, "{}", info.name);
    }
}

#[test]
fn a_weight_is_refused_where_it_means_nothing() {
    for name in ["dora", "ia3", "oft", "road", "saved"] {
        let error = stack_on(base(), &[(name, 0.5)], MergeOptions::default()).err().unwrap();
        assert!(matches!(error, Error::Weight { .. }), "{name}: {error}");
        stack_on(base(), &[(name, 1.0)], MergeOptions::default()).unwrap();
    }
    let error =
        stack_on(base(), &[("lora", 1.0), ("loha", f64::NAN)], MergeOptions::default()).err().unwrap();
    assert!(error.to_string().contains("peft-stack/loha"), "{error}");
    assert!(stack_on(base(), &[], MergeOptions::default()).is_err());
}
