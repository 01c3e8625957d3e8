//! Every format against its own library: see `fixtures/make_quantized_bases.py`.
#![allow(clippy::unwrap_used)] // a test file

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use tenon_checkpoint::{Checkpoint, Dtype, TensorSource, read_json};
use tenon_dequant::{Dequantized, Opened, open};

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quantized-bases");
    let mut cases: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.safetensors").exists())
        .collect();
    cases.sort();
    assert!(cases.len() >= 30, "{} cases", cases.len());
    cases
}

fn opened(case: &Path) -> Dequantized {
    let config: serde_json::Value = read_json(&case.join("config.json")).unwrap();
    match open(Arc::new(Checkpoint::open(case).unwrap()), &config).unwrap() {
        Opened::Quantized(model) => model,
        other => panic!("{}: {other:?}", case.display()),
    }
}

/// All values of a tensor, read so many rows at a time.
fn values(source: &dyn TensorSource, tensor: usize, step: u64) -> Vec<f32> {
    let info = &source.tensors()[tensor];
    assert_eq!(info.dtype, Dtype::F32, "{}", info.name);
    let mut bytes = vec![];
    let mut row = 0;
    while row < info.rows() {
        let end = info.rows().min(row + step);
        let mut tile = vec![0; ((end - row) * info.row_bytes()) as usize];
        source.read_rows(tensor, row..end, &mut tile).unwrap();
        bytes.extend(tile);
        row = end;
    }
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The values of an expected tensor, and the type they have there.
fn expected(expected: &Checkpoint, name: &str) -> Option<(Dtype, Vec<u64>, Vec<f32>)> {
    let (tensor, info) = expected.find(name)?;
    let mut bytes = vec![0; info.bytes() as usize];
    expected.read_bytes(tensor, 0, &mut bytes).unwrap();
    let values = match info.dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        other => panic!("{other}"),
    };
    Some((info.dtype, info.shape.clone(), values))
}

#[test]
fn values_are_the_librarys_to_the_last_bit() {
    for case in cases() {
        let model = opened(&case);
        let reference = Checkpoint::open_file(case.join("expected.safetensors")).unwrap();
        let label = case.file_name().unwrap().to_string_lossy().into_owned();
        let mut compared = 0;
        for info in reference.tensors().iter().filter(|info| !info.name.ends_with(".library")) {
            let tensor = model.find(&info.name).unwrap_or_else(|| panic!("{label}: no {}", info.name));
            let (_, shape, wanted) = expected(&reference, &info.name).unwrap();
            assert_eq!(model.tensors()[tensor].shape, shape, "{label}");
            let found = values(&model, tensor, u64::MAX >> 8);
            let first = found.iter().zip(&wanted).position(|(a, b)| a.to_bits() != b.to_bits() && a != b);
            assert_eq!(first.map(|at| (at, found[at], wanted[at])), None, "{label}: {}", info.name);
            if let Some((dtype, _, library)) = expected(&reference, &format!("{}.library", info.name)) {
                let narrow = |value: f32| match dtype {
                    Dtype::F16 => f16::from_f32(value).to_f32(),
                    Dtype::BF16 => bf16::from_f32(value).to_f32(),
                    _ => value,
                };
                let first = found.iter().zip(&library).position(|(a, b)| narrow(*a) != *b);
                assert_eq!(first.map(|at| (at, found[at], library[at])), None, "{label}: the library's type");
            }
            compared += 1;
        }
        assert!(compared > 0, "{label}");
    }
}

#[test]
fn rows_are_the_same_however_they_are_cut() {
    for case in cases() {
        let model = opened(&case);
        for tensor in (0..model.tensors().len()).filter(|tensor| model.format(*tensor).is_some()) {
            let whole: Vec<u32> = values(&model, tensor, 1 << 20).into_iter().map(f32::to_bits).collect();
            for step in [1, 3, 7, 33] {
                let cut: Vec<u32> = values(&model, tensor, step).into_iter().map(f32::to_bits).collect();
                assert!(cut == whole, "{}: {step} rows at a time", case.display());
            }
        }
    }
}

#[test]
fn the_model_has_neither_packed_tensors_nor_a_quantization_config() {
    for case in cases() {
        let model = opened(&case);
        let label = case.display();
        assert_eq!(model.formats().len(), 1, "{label}: {:?}", model.formats());
        for info in model.tensors() {
            let last = info.name.rsplit('.').next().unwrap();
            let plain = ["weight", "bias", "gate_up_proj", "gate_up_proj_bias"].contains(&last);
            assert!(plain && info.dtype.is_editable(), "{label}: {}", info.name);
        }
        assert!(model.config().get("quantization_config").or(model.config().get("quantization")).is_none());
        assert_eq!(model.config()["torch_dtype"], "bfloat16");
    }
}

/// Every tensor of every case taken away, turned over, or filled with ones: an error, or values, but no
/// panic and nothing read past an end.
#[test]
fn damaged_checkpoints_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (mut errors, mut opened_all) = (0, 0);
    for case in cases() {
        let bytes = std::fs::read(case.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let config: serde_json::Value = read_json(&case.join("config.json")).unwrap();
        for name in file.names() {
            for damage in ["gone", "turned", "ones"] {
                let kept = file.iter().filter(|(other, _)| damage != "gone" || *other != name);
                let views = kept.map(|(other, view)| {
                    let mut shape = view.shape().to_vec();
                    let mut data = view.data().to_vec();
                    if other == name && damage == "turned" {
                        shape.reverse();
                    }
                    if other == name && damage == "ones" {
                        data.fill(0xff);
                    }
                    (other.to_string(), (view.dtype(), shape, data))
                });
                let views: Vec<_> = views.collect();
                let views = views.iter().map(|(name, (dtype, shape, data))| {
                    (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
                });
                let damaged = safetensors::serialize(views, None).unwrap();
                std::fs::write(dir.path().join("model.safetensors"), damaged).unwrap();
                let checkpoint = Arc::new(Checkpoint::open(dir.path()).unwrap());
                match open(checkpoint, &config) {
                    Ok(Opened::Quantized(model)) => {
                        opened_all += 1;
                        for (tensor, info) in model.tensors().iter().enumerate() {
                            let mut out = vec![0; info.bytes() as usize];
                            errors += usize::from(model.read_rows(tensor, 0..info.rows(), &mut out).is_err());
                        }
                    }
                    Ok(_) => {}
                    Err(_) => errors += 1,
                }
            }
        }
    }
    assert!(errors > 100 && opened_all > 50, "{errors} errors, {opened_all} opened");
}
