//! Gigabytes a second of each kernel at each level, counted in bf16 bytes of the base.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tenon_checkpoint::Dtype;
use tenon_merge::kernel::{self, Level, LowRankBlock};

/// A strip of the merge: 32 rows of 1024 columns.
const ROWS: usize = 32;
const COLS: usize = 1024;

fn kernels(c: &mut Criterion) {
    let mut group = c.benchmark_group("strip of 32 x 1024");
    group.throughput(Throughput::Bytes((ROWS * COLS * 2) as u64));
    let bytes: Vec<u8> =
        (0..ROWS * COLS).flat_map(|i| half::bf16::from_f32((i as f32).sin()).to_le_bytes()).collect();
    let mut values = vec![0.0; ROWS * COLS];
    let mut out = bytes.clone();
    for level in Level::available() {
        for dtype in [Dtype::BF16, Dtype::F16] {
            group.bench_function(BenchmarkId::new(format!("decode {dtype}"), format!("{level:?}")), |b| {
                b.iter(|| kernel::decode(level, dtype, black_box(&bytes), &mut values));
            });
            group.bench_function(BenchmarkId::new(format!("encode {dtype}"), format!("{level:?}")), |b| {
                b.iter(|| kernel::encode(level, dtype, black_box(&values), &mut out));
            });
        }
        for rank in [16, 64] {
            let (left, right) = (vec![0.5; ROWS * rank], vec![0.25; rank * COLS]);
            let block = LowRankBlock {
                left: &left,
                right: &right,
                right_stride: COLS,
                rank,
                scale: 2.0,
                exact: true,
            };
            group.bench_function(BenchmarkId::new(format!("low rank {rank}"), format!("{level:?}")), |b| {
                b.iter(|| kernel::add_low_rank(level, black_box(&mut values), COLS, block));
            });
        }
        group.bench_function(BenchmarkId::new("row norm", format!("{level:?}")), |b| {
            b.iter(|| kernel::row_norm(level, black_box(&values)));
        });
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
