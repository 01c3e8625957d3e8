//! (IA)³: activations scaled by a learned vector `l`, and so the weight.
//!
//! A feed-forward module scales its input: `W' = W diag(l)`, `l` of `in`
//! elements. Any other scales its output: `W' = diag(l) W` and `b' = l b`, `l`
//! of `out` elements. A convolution scales channels; one in groups has an `l`
//! of all input channels, each group taking its own. Sources: Liu et al. 2022;
//! PEFT 0.21.2, `tuners/ia3/layer.py`.

use std::sync::Arc;

use fancy_regex::Regex;

use super::layer::{Features, Layer};
use super::{KnownMethod, Merging, Method, Module};
use crate::edit::{Edit, PreparedEdit, Tile, ValueRows};
use crate::planner::Planner;
use crate::{Adapter, AdapterConfig, Error, kernel, pattern};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "IA3",
    name: "(IA)³",
    formula: "`diag(l) W`, `l b`; feed-forward `W diag(l)`",
    source: "Liu et al. 2022",
    merging: Merging::Reads(read),
};

const LABEL: &str = "(IA)³";

/// Which modules scale their input.
#[derive(Debug)]
enum FeedForward {
    /// Those whose whole path matches.
    Matching(Regex),
    /// Those whose path ends so.
    Ending(Vec<String>),
}

#[derive(Debug)]
struct Ia3 {
    feed_forward: FeedForward,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    config.refuse_unknown_fields(&["fan_in_fan_out", "feedforward_modules", "init_ia3_weights"])?;
    let field = "feedforward_modules";
    let feed_forward = match config.value(field).and_then(|v| v.as_str()) {
        Some(pattern) => FeedForward::Matching(pattern::whole_name(config, field, pattern)?),
        None => FeedForward::Ending(config.texts(field)?.into_iter().map(str::to_string).collect()),
    };
    Ok(Box::new(Ia3 { feed_forward }))
}

impl Method for Ia3 {
    fn parameters(&self) -> &'static [&'static str] {
        &["ia3_l"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        modules.iter().try_for_each(|module| self.plan_layer(module, planner))
    }
}

impl Ia3 {
    /// Whether a module scales its input. A vector's shape tells it, `[1, in]` from `[out, 1]`; that
    /// of a convolution, `[1, channels, 1..]`, does not.
    fn is_feed_forward(&self, path: &str, shape: &[u64]) -> bool {
        match shape {
            [1, n] if *n != 1 => true,
            [n, 1] if *n != 1 => false,
            _ => match &self.feed_forward {
                FeedForward::Matching(regex) => regex.is_match(path).unwrap_or(false),
                FeedForward::Ending(ends) => ends.iter().any(|end| path.ends_with(end.as_str())),
            },
        }
    }

    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        let vector = module.need("ia3_l", planner)?;
        let shape = planner.adapter_shape(vector).to_vec();
        let feed_forward = self.is_feed_forward(&module.path, &shape);
        let channels = shape.get(1).copied().unwrap_or(0).max(shape.first().copied().unwrap_or(0));
        let mut features = Features::default();
        let side = if feed_forward { &mut features.input } else { &mut features.out };
        *side = Some(channels);
        let layer = planner.layer(module, vector, features)?;
        let scale = scale(&layer, vector, feed_forward, &shape, planner)?;
        planner.edit(layer.slot, LABEL, scale);
        if !feed_forward && let Some(bias) = planner.bias_of(&layer, vector)? {
            // A bias is a column of single elements.
            planner.edit(bias, LABEL, Scale { vector, along: Along::Rows });
        }
        Ok(())
    }
}

fn scale(
    layer: &Layer,
    vector: usize,
    feed_forward: bool,
    shape: &[u64],
    planner: &Planner<'_>,
) -> Result<Scale, Error> {
    let expect = |shape: &[u64]| planner.expect_shape(vector, layer.slot, shape);
    let of_kernel = |channels: u64| [&[1, channels][..], &vec![1; layer.shape.len() - 2]].concat();
    let along = match (layer.is_conv(), feed_forward) {
        (false, true) => {
            expect(&[1, layer.input])?;
            if layer.transposed { Along::Rows } else { Along::Cols }
        }
        (false, false) => {
            expect(&[layer.out, 1])?;
            if layer.transposed { Along::Cols } else { Along::Rows }
        }
        (true, false) => {
            expect(&of_kernel(layer.out))?;
            Along::Rows
        }
        (true, true) => {
            let (per_group, channels) = (layer.shape[1], shape.get(1).copied().unwrap_or(0));
            let groups = channels.checked_div(per_group).unwrap_or(0);
            if groups == 0 || !channels.is_multiple_of(per_group) || !layer.out.is_multiple_of(groups) {
                return Err(planner.shape_error(
                    vector,
                    layer.slot,
                    format!("{:?}, or a multiple of it for a convolution in groups", of_kernel(per_group)),
                ));
            }
            expect(&of_kernel(channels))?;
            Along::Channels {
                rows_per_group: layer.out / groups,
                per_group: per_group as usize,
                kernel: layer.kernel() as usize,
            }
        }
    };
    Ok(Scale { vector, along })
}

/// What the elements of a vector scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Along {
    Rows,
    Cols,
    /// Input channels of a convolution, each `kernel` columns.
    Channels {
        rows_per_group: u64,
        per_group: usize,
        kernel: usize,
    },
}

/// `W[i, j] *= l[i or j]`.
#[derive(Debug, Clone, Copy)]
struct Scale {
    vector: usize,
    along: Along,
}

struct PreparedScale {
    vector: Arc<[f64]>,
    along: Along,
}

impl Edit for Scale {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        Ok(Box::new(PreparedScale { vector: adapter.values(self.vector)?, along: self.along }))
    }
}

impl PreparedEdit for PreparedScale {
    fn apply(&self, tile: &mut Tile<'_>) {
        let (first_row, first_col, cols) = (tile.first_row, tile.first_col, tile.cols);
        for (row, values) in (first_row..).zip(tile.values.chunks_exact_mut(cols.max(1))) {
            match self.along {
                Along::Rows => kernel::scale_row(tile.level, values, self.vector[row as usize]),
                Along::Cols => {
                    kernel::scale_columns(tile.level, values, &self.vector[first_col..first_col + cols]);
                }
                Along::Channels { rows_per_group, per_group, kernel } => {
                    let group = &self.vector[(row / rows_per_group) as usize * per_group..];
                    for (col, value) in (first_col..).zip(values) {
                        *value *= group[col / kernel];
                    }
                }
            }
        }
    }
}
