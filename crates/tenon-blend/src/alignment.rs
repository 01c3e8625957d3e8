//! Embeddings of models whose tokens differ: each row of a model's tensor where the result has its token.
//!
//! As mergekit 0.1.5 does it: a model's own row where it has the token, else
//! the base's; where the base lacks it too, the one model's that has it or the
//! mean of those that have it, each sum rounded to the working type. What no
//! model has is zero. Rows beyond the tokens are the mean of all others.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tenon_checkpoint::{Dtype, Rows, TensorInfo};
use tenon_merge::kernel::{self, Level};

use crate::plan::{Input, Model};
use crate::tokenizer::{self, RowSource, TokenRule, TokenizerChoice, Vocabularies};
use crate::{Error, ModelReference};

/// Where a row of an aligned tensor comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Zero,
    /// A row of an input.
    Of {
        input: u32,
        row: u32,
    },
    /// One of the means.
    Mean(u32),
    /// The mean of the rows of all tokens.
    Padding,
}

/// One input of a tensor, its rows in the order of the result's tokens.
#[derive(Debug)]
pub(crate) struct Alignment {
    /// All inputs that rows come from.
    inputs: Arc<[Input]>,
    rows: Vec<Row>,
    /// Inputs and rows of which a mean is made.
    means: Arc<[Vec<(u32, u32)>]>,
    work: Dtype,
    row_len: u64,
    /// Rows that stand for tokens.
    tokens: usize,
    padding: OnceLock<Vec<f64>>,
}

/// Embeddings of several models, to be aligned.
pub(crate) struct Embeddings<'a> {
    /// Name of the tensor.
    pub(crate) name: &'a str,
    /// The inputs and what they are stored as, in the order of the sources.
    pub(crate) inputs: Vec<(Input, &'a TensorInfo)>,
    pub(crate) base: Option<usize>,
    pub(crate) work: Dtype,
    pub(crate) models: &'a [Model],
}

impl Embeddings<'_> {
    /// Of each input its alignment. `None` where all are in order as they are.
    pub(crate) fn align(
        &self,
        vocabularies: &Vocabularies,
        choice: &TokenizerChoice,
    ) -> Result<Option<Vec<Alignment>>, Error> {
        let tokens = &vocabularies.result;
        let size = tokens.len() as u64;
        let padded = choice.pad_to_multiple_of.map_or(size, |multiple| size.next_multiple_of(multiple));
        let rows_of = |input: usize| self.inputs[input].1.shape.first().copied().unwrap_or(0);
        let rules: HashMap<&str, &TokenRule> =
            choice.tokens.iter().map(|(token, rule)| (token.as_str(), rule)).collect();
        let mut rows = vec![vec![Row::Zero; padded as usize]; self.inputs.len()];
        let mut means = vec![];
        for (token, &number) in tokens {
            if number >= padded {
                return Err(Error::TokenNumber { token: token.clone(), number, rows: padded });
            }
            let own: Vec<Option<Row>> = (0..self.inputs.len())
                .map(|input| {
                    let row = *vocabularies.models[self.inputs[input].0.model].get(token)?;
                    (row < rows_of(input)).then(|| of(input, row))
                })
                .collect();
            let rule = rules.get(token.as_str()).copied();
            let force = rule.is_some_and(|rule| rule.force);
            let other = if own.iter().all(Option::is_some) && !force {
                Row::Zero
            } else if let Some(rule) = rule {
                self.ruled(token, rule, &own, vocabularies)?
            } else {
                self.found(&own, &mut means)
            };
            for (rows, own) in rows.iter_mut().zip(&own) {
                rows[number as usize] = own.filter(|_| !force).unwrap_or(other);
            }
        }
        for rows in &mut rows {
            rows[size as usize..].fill(Row::Padding);
        }
        let in_order = |(input, rows): (usize, &Vec<Row>)| {
            rows.len() as u64 == rows_of(input)
                && rows.iter().enumerate().all(|(at, row)| *row == of(input, at as u64))
        };
        if rows.iter().enumerate().all(in_order) {
            return Ok(None);
        }
        let inputs: Arc<[Input]> = self.inputs.iter().map(|(input, _)| *input).collect();
        let means: Arc<[_]> = means.into();
        let row_len: u64 = self.inputs[0].1.shape.iter().skip(1).product();
        let alignment = |rows| Alignment {
            inputs: inputs.clone(),
            rows,
            means: means.clone(),
            work: self.work,
            row_len,
            tokens: size as usize,
            padding: OnceLock::new(),
        };
        Ok(Some(rows.into_iter().map(alignment).collect()))
    }

    /// The row of a token that some have: the base's, the only one's, or the mean of all.
    fn found(&self, own: &[Option<Row>], means: &mut Vec<Vec<(u32, u32)>>) -> Row {
        let have: Vec<Row> = own.iter().copied().flatten().collect();
        let base = self.base.and_then(|base| self.inputs.iter().position(|(input, _)| input.model == base));
        match (have[..].as_ref(), base.and_then(|base| own[base])) {
            ([], _) => Row::Zero,
            ([only], _) => *only,
            (_, Some(base)) => base,
            (several, None) => {
                let pair = |row: &Row| match row {
                    Row::Of { input, row } => Some((*input, *row)),
                    _ => None,
                };
                means.push(several.iter().filter_map(pair).collect());
                Row::Mean(means.len() as u32 - 1)
            }
        }
    }

    /// The row of a token that the configuration speaks of.
    fn ruled(
        &self,
        token: &str,
        rule: &TokenRule,
        own: &[Option<Row>],
        vocabularies: &Vocabularies,
    ) -> Result<Row, Error> {
        let input = |model: &ModelReference| {
            let found =
                self.inputs.iter().position(|(input, _)| self.models[input.model].reference == *model);
            let what = || format!("{model}, which has no part in {},", self.name);
            found.ok_or_else(|| {
                tokenizer::fault(token, what(), "name one of the models that are merged there")
            })
        };
        let missing = |model: &ModelReference, what: String| {
            tokenizer::fault(
                token,
                format!("{what} of {model}, which does not have it,"),
                "name one that it has",
            )
        };
        match &rule.source {
            Some(RowSource::Zero) => Ok(Row::Zero),
            Some(RowSource::Model(model)) => {
                own[input(model)?].ok_or_else(|| missing(model, "the row".into()))
            }
            Some(RowSource::Token(model, other)) => {
                let input = input(model)?;
                let row = vocabularies.models[self.inputs[input].0.model].get(other).copied();
                self.row(input, row).ok_or_else(|| missing(model, format!("the token {other:?}")))
            }
            Some(RowSource::Row(model, row)) => {
                let input = input(model)?;
                self.row(input, Some(*row)).ok_or_else(|| missing(model, format!("row {row}")))
            }
            None => Err(tokenizer::fault(
                token,
                "a token without a source, which not all models have,".into(),
                "say where its row comes from",
            )),
        }
    }

    fn row(&self, input: usize, row: Option<u64>) -> Option<Row> {
        row.filter(|row| self.inputs[input].1.shape.first().is_some_and(|rows| row < rows))
            .map(|row| of(input, row))
    }
}

fn of(input: usize, row: u64) -> Row {
    Row::Of { input: input as u32, row: u32::try_from(row).unwrap_or(u32::MAX) }
}

impl Alignment {
    /// Rows of the aligned tensor.
    pub(crate) fn len(&self) -> u64 {
        self.rows.len() as u64
    }

    /// Fills `out` with rows of the aligned tensor, as the working type. For a vector (a bias over the
    /// tokens) rows are its elements.
    pub(crate) fn read(
        &self,
        models: &[Model],
        level: Level,
        rows: Rows,
        out: &mut [u8],
    ) -> Result<(), Error> {
        let width = self.row_len.max(1) as usize;
        let row_bytes = width * self.work.bits() as usize / 8;
        let mut values = vec![];
        let mut at = rows.start as usize;
        while at < rows.end as usize {
            let run = self.run(at, rows.end as usize);
            let start = (at - rows.start as usize) * row_bytes;
            let out = &mut out[start..start + run * row_bytes];
            match self.rows[at] {
                Row::Zero => out.fill(0),
                Row::Of { input, row } => {
                    let rows = u64::from(row)..u64::from(row) + run as u64;
                    self.decoded(models, level, input, rows, &mut values)?;
                    kernel::encode(level, self.work, &values, out);
                }
                Row::Mean(mean) => {
                    self.mean(models, level, &self.means[mean as usize], &mut values)?;
                    kernel::encode(level, self.work, &values, out);
                }
                Row::Padding => {
                    kernel::encode(level, self.work, self.padding(models, level)?, out);
                }
            }
            at += run;
        }
        Ok(())
    }

    /// How many rows from `at` on lie one after the other in one input.
    fn run(&self, at: usize, end: usize) -> usize {
        let Row::Of { input, row } = self.rows[at] else { return 1 };
        let follows = |(number, next): (usize, &Row)| {
            *next == Row::Of { input, row: row.saturating_add(number as u32) }
        };
        self.rows[at..end].iter().enumerate().take_while(|(number, next)| follows((*number, next))).count()
    }

    fn decoded(
        &self,
        models: &[Model],
        level: Level,
        input: u32,
        rows: Rows,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        let input = self.inputs[input as usize];
        let count = (rows.end - rows.start) as usize * self.row_len.max(1) as usize;
        let mut bytes = vec![0; count * input.stored.bits() as usize / 8];
        models[input.model].source.read_rows(input.tensor, rows, &mut bytes)?;
        values.resize(count, 0.0);
        kernel::decode(level, input.stored, &bytes, values);
        if input.stored != self.work {
            crate::strip::round(level, self.work, values);
        }
        Ok(())
    }

    fn mean(
        &self,
        models: &[Model],
        level: Level,
        of: &[(u32, u32)],
        sum: &mut Vec<f64>,
    ) -> Result<(), Error> {
        sum.clear();
        sum.resize(self.row_len.max(1) as usize, 0.0);
        let mut values = vec![];
        for &(input, row) in of {
            self.decoded(models, level, input, u64::from(row)..u64::from(row) + 1, &mut values)?;
            sum.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
            crate::strip::round(level, self.work, sum);
        }
        sum.iter_mut().for_each(|sum| *sum /= of.len() as f64);
        Ok(())
    }

    /// The mean of the rows of all tokens.
    fn padding(&self, models: &[Model], level: Level) -> Result<&[f64], Error> {
        if let Some(known) = self.padding.get() {
            return Ok(known);
        }
        let width = self.row_len.max(1) as usize;
        let mut sum = vec![0.0; width];
        let (mut bytes, mut values) = (vec![], vec![]);
        let step = ((1 << 16) / width).max(1);
        for from in (0..self.tokens).step_by(step) {
            let rows = from..self.tokens.min(from + step);
            values.resize(rows.len() * width, 0.0);
            bytes.resize(values.len() * self.work.bits() as usize / 8, 0);
            self.read(models, level, rows.start as u64..rows.end as u64, &mut bytes)?;
            kernel::decode(level, self.work, &bytes, &mut values);
            for row in values.chunks(width) {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        sum.iter_mut().for_each(|sum| *sum /= self.tokens.max(1) as f64);
        Ok(self.padding.get_or_init(|| sum))
    }
}
