//! GLoRA: `W' = W + W ∘ A + B`, `b' = b + b ∘ D + E + W c`.
//!
//! `A` and `B` are each a product `Xd [out, r]` times `Xu [r, in]`, a vector `X [out, 1]` for the rows, a
//! number, or nothing; `c` is a product `Xd [in, r]` times `Xu [r, 1]`, a vector `X [in, 1]`, or nothing;
//! `D` and `E` a vector `[out]`, a number, or nothing. A layer without a bias has only `A` and `B`.
//! Sources: Chavan et al. 2023; PEFT 0.21.2, `tuners/glora/layer.py`.
//!
//! `W c` needs all rows of the base's weight, which are read once more for the bias.

use std::sync::Arc;

use super::layer::{Features, Layer};
use super::product::{cols_times, in_proportion};
use super::{KnownMethod, Merging, Method, Module};
use crate::planner::{Origin, Planner};
use crate::{Adapter, AdapterConfig, Edit, Error, PreparedEdit, Tile, ValueRows, kernel};

pub(super) const METHOD: KnownMethod = KnownMethod {
    peft_type: "GLORA",
    name: "GLoRA",
    formula: "`W + W ∘ A + B`, `b + b ∘ D + E + W c`; each a product, a vector, a number or nothing",
    source: "Chavan et al. 2023",
    merging: Merging::Reads(read),
};

const LABEL: &str = "GLoRA";

#[derive(Debug)]
struct GLora {
    rank: u64,
}

fn read(config: &AdapterConfig) -> Result<Box<dyn Method>, Error> {
    // What each part is, its tensors tell.
    config.refuse_unknown_fields(&["bias", "config_A_B", "config_C", "config_D_E", "init_weights", "r"])?;
    Ok(Box::new(GLora { rank: config.count("r")?.unwrap_or(8) }))
}

/// One part of the update, as the adapter's tensors give it.
#[derive(Debug, Clone, Copy)]
enum Part {
    Nothing,
    Number(usize),
    Vector(usize),
    /// `Xd` and `Xu`.
    Product(usize, usize),
}

impl Method for GLora {
    fn parameters(&self) -> &'static [&'static str] {
        &["glora_A.*", "glora_B.*", "glora_C.*", "glora_D.*", "glora_E.*"]
    }

    fn plan(&self, modules: &[Module], planner: &mut Planner<'_>) -> Result<(), Error> {
        for module in modules {
            self.plan_layer(module, planner)?;
        }
        Ok(())
    }
}

impl GLora {
    fn plan_layer(&self, module: &Module, planner: &mut Planner<'_>) -> Result<(), Error> {
        // Whichever is there names the module in errors.
        let first = module.tensors.values().next().copied().unwrap_or_default();
        let layer = planner.layer(module, first, Features::default())?;
        if layer.is_conv() || layer.transposed {
            return Err(planner.shape_error(first, layer.slot, "the weight of a linear layer".into()));
        }
        let part = |name: &str, rows: u64, cols: u64| self.part(module, name, rows, cols, &layer, planner);
        let (a, b) = (part("glora_A", layer.out, layer.input)?, part("glora_B", layer.out, layer.input)?);
        let weight = Affine { a, b, rank: self.rank as usize, cols: layer.input as usize };
        let (c, d, e) = (
            part("glora_C", layer.input, 1)?,
            part("glora_D", layer.out, 0)?,
            part("glora_E", layer.out, 0)?,
        );
        planner.edit(layer.slot, LABEL, weight);
        let Some(bias) = planner.bias_of(&layer, first)? else { return Ok(()) };
        let Origin::Base(weight) = planner.slots[layer.slot].origin else {
            return Err(planner.shape_error(
                first,
                layer.slot,
                "a weight that the adapter does not hold whole".into(),
            ));
        };
        let edit = Bias { c, d, e, weight, rank: self.rank as usize, input: layer.input as usize };
        planner.edit(bias, LABEL, edit);
        Ok(())
    }

    /// A part of `rows` times `cols` elements; of a bias if `cols` is 0.
    fn part(
        &self,
        module: &Module,
        name: &str,
        rows: u64,
        cols: u64,
        layer: &Layer,
        planner: &Planner<'_>,
    ) -> Result<Part, Error> {
        let get = |end: &str| module.get(&format!("{name}.{end}"));
        if get("Xd").or(get("Xu")).is_some() {
            let down = module.need(&format!("{name}.Xd"), planner)?;
            let up = module.need(&format!("{name}.Xu"), planner)?;
            planner.expect_shape(down, layer.slot, &[rows, self.rank])?;
            planner.expect_shape(up, layer.slot, &[self.rank, cols])?;
            if !in_proportion(self.rank, layer.out, layer.input) {
                let expected = format!("a rank far below {}", self.rank);
                return Err(planner.shape_error(down, layer.slot, expected));
            }
            return Ok(Part::Product(down, up));
        }
        let Some(x) = get("X") else {
            // PEFT saves the zeros that stand for nothing.
            let Some(zeros) = get("zeros") else {
                return module.need(&format!("{name}.X"), planner).map(|_| Part::Nothing);
            };
            let shape: &[u64] = if cols == 0 { &[rows] } else { &[rows, cols] };
            planner.expect_shape(zeros, layer.slot, shape)?;
            return Ok(Part::Nothing);
        };
        if planner.adapter_shape(x) == [1] && cols != 1 {
            return Ok(Part::Number(x));
        }
        let shape: &[u64] = if cols == 0 { &[rows] } else { &[rows, 1] };
        planner.expect_shape(x, layer.slot, shape)?;
        Ok(Part::Vector(x))
    }
}

/// A part with its values at hand.
enum Values {
    Nothing,
    Number(f64),
    Vector(Arc<[f64]>),
    /// Left and right factor.
    Product(Arc<[f64]>, Arc<[f64]>),
}

impl Part {
    fn values(self, adapter: &Adapter) -> Result<Values, Error> {
        Ok(match self {
            Part::Nothing => Values::Nothing,
            Part::Number(x) => Values::Number(adapter.values(x)?[0]),
            Part::Vector(x) => Values::Vector(adapter.values(x)?),
            Part::Product(down, up) => Values::Product(adapter.values(down)?, adapter.values(up)?),
        })
    }
}

/// `W += W ∘ A + B`.
#[derive(Debug)]
struct Affine {
    a: Part,
    b: Part,
    rank: usize,
    cols: usize,
}

struct PreparedAffine {
    a: Values,
    b: Values,
    rank: usize,
    cols: usize,
}

impl Edit for Affine {
    fn prepare(&self, adapter: &Adapter, _: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let (a, b) = (self.a.values(adapter)?, self.b.values(adapter)?);
        Ok(Box::new(PreparedAffine { a, b, rank: self.rank, cols: self.cols }))
    }
}

impl PreparedAffine {
    /// The elements of a part that a tile needs.
    fn elements(&self, part: &Values, tile: &Tile<'_>) -> Vec<f64> {
        let mut values = vec![0.0; tile.values.len()];
        match part {
            Values::Nothing => {}
            Values::Number(number) => values.fill(*number),
            Values::Vector(rows) => {
                let rows = &rows[tile.first_row as usize..];
                values
                    .chunks_exact_mut(tile.cols.max(1))
                    .zip(rows)
                    .for_each(|(values, row)| values.fill(*row));
            }
            Values::Product(left, right) => {
                let block = kernel::LowRankBlock {
                    left: &left[tile.first_row as usize * self.rank..],
                    right: &right[tile.first_col..],
                    right_stride: self.cols,
                    rank: self.rank,
                    scale: 1.0,
                    exact: false,
                };
                kernel::add_low_rank(tile.level, &mut values, tile.cols, block);
            }
        }
        values
    }
}

impl PreparedEdit for PreparedAffine {
    fn apply(&self, tile: &mut Tile<'_>) {
        let (a, b) = (self.elements(&self.a, tile), self.elements(&self.b, tile));
        for ((value, a), b) in tile.values.iter_mut().zip(&a).zip(&b) {
            *value += *value * a + b;
        }
    }
}

/// `b += b ∘ D + E + W c`.
#[derive(Debug)]
struct Bias {
    c: Part,
    d: Part,
    e: Part,
    /// The base's tensor.
    weight: usize,
    rank: usize,
    input: usize,
}

struct PreparedBias {
    d: Values,
    e: Values,
    /// `W c`, if there is a `c`.
    moved: Vec<f64>,
}

impl Edit for Bias {
    fn prepare(&self, adapter: &Adapter, before: &dyn ValueRows) -> Result<Box<dyn PreparedEdit>, Error> {
        let c = match self.c.values(adapter)? {
            Values::Nothing => vec![],
            Values::Number(number) => vec![number; self.input],
            Values::Vector(c) => c.to_vec(),
            Values::Product(down, up) => {
                let element = |row: &[f64]| row.iter().zip(up.iter()).map(|(d, u)| d * u).sum();
                down.chunks_exact(self.rank).map(element).collect()
            }
        };
        let weight = before.of_base(self.weight);
        let moved = if c.is_empty() { vec![] } else { cols_times(&*weight, &c, 1)? };
        Ok(Box::new(PreparedBias { d: self.d.values(adapter)?, e: self.e.values(adapter)?, moved }))
    }
}

impl PreparedEdit for PreparedBias {
    fn apply(&self, tile: &mut Tile<'_>) {
        let start = tile.first_row as usize * tile.cols + tile.first_col;
        let of = |part: &Values, at: usize| match part {
            Values::Nothing | Values::Product(..) => 0.0,
            Values::Number(number) => *number,
            Values::Vector(values) => values[at],
        };
        for (at, value) in (start..).zip(tile.values.iter_mut()) {
            let moved = self.moved.get(at).copied().unwrap_or(0.0);
            *value += *value * of(&self.d, at) + of(&self.e, at) + moved;
        }
    }
}
