//! The table of a model's MatFormer sizes: an FFN width for each layer that is kept, and which
//! layers are skipped.
//!
//! Its columns are those of the table that Gemma 3n's publisher ships. A model's folder may hold one
//! of its own; the published one goes for models of the published dimensions.

use std::fmt::Write as _;

/// The table that Gemma 3n's publisher ships with the E4B checkpoint.
pub const PUBLISHED: &str = include_str!("../data/gemma3n-sizes.csv");

const NAME: &str = "name";
const LAYERS: &str = "# Layers";
const PARAMS: &str = "# Effective Params (B)";
const ACCURACY: &str = "MMLU PT accuracy";
const WIDTHS: &str = "FFN Hidden Dims";
const SKIPPED: &str = "Layers Skipped";

/// Rows of a table, beyond any use.
const MAX_SIZES: usize = 256;
const MAX_NAME_BYTES: usize = 64;

/// One size.
#[derive(Clone, Debug, PartialEq)]
pub struct Size {
    /// Its name in both APIs and in mistral.rs.
    pub name: String,
    /// Parameters that are computed with, in thousands of millions; 0 if the table does not say.
    pub effective_params_b: f64,
    /// The FFN width of each layer that is kept, in order.
    pub widths: Vec<u64>,
    /// The layers that are left out, in ascending order.
    pub skipped: Vec<usize>,
}

impl Size {
    /// The width of every layer of the model, skipped ones included.
    #[must_use]
    pub fn slice(&self) -> Slice {
        let mut kept = self.widths.iter();
        let width = |layer| {
            let width = if self.skipped.contains(&layer) { None } else { kept.next() };
            width.map(|width| usize::try_from(*width).unwrap_or(usize::MAX))
        };
        Slice { widths: (0..self.widths.len() + self.skipped.len()).map(width).collect() }
    }
}

/// A size as the forward pass takes it: for each layer the FFN width, or None if the layer is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    widths: Vec<Option<usize>>,
}

impl Slice {
    /// Any mix of widths.
    #[must_use]
    pub fn new(widths: Vec<Option<usize>>) -> Self {
        Self { widths }
    }

    /// For each layer its width; None is skipped.
    #[must_use]
    pub fn widths(&self) -> &[Option<usize>] {
        &self.widths
    }
}

/// What a table is checked against, from the model's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The full FFN width of each layer.
    pub widths: Vec<u64>,
    /// The first layer without a KV cache of its own. Only layers from here on may be skipped: the
    /// others write what these read.
    pub first_shared_layer: usize,
}

/// Reads a table, largest size first. The error names the line.
pub fn parse(text: &str, shape: &Shape) -> Result<Vec<Size>, String> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| format!("line 1: {error}"))?.clone();
    let column = |name: &str| headers.iter().position(|header| header == name);
    let needed = |name: &str| column(name).ok_or_else(|| format!("line 1: no column {name:?}"));
    let (name, widths, layers) = (needed(NAME)?, needed(WIDTHS)?, needed(LAYERS)?);
    let (params, skipped) = (column(PARAMS), column(SKIPPED));

    let mut sizes: Vec<Size> = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let cell = |column: usize| record.get(column).unwrap_or_default();
        let size = Size {
            name: cell(name).to_owned(),
            effective_params_b: match params.map(cell).unwrap_or_default() {
                "" => 0.0,
                text => number(text).map_err(|why| format!("line {line}: {PARAMS}: {why}"))?,
            },
            widths: list(cell(widths)).map_err(|why| format!("line {line}: {WIDTHS}: {why}"))?,
            skipped: list(skipped.map(cell).unwrap_or_default())
                .map_err(|why| format!("line {line}: {SKIPPED}: {why}"))?
                .into_iter()
                .map(|layer| usize::try_from(layer).unwrap_or(usize::MAX))
                .collect(),
        };
        check(&size, cell(layers), shape).map_err(|why| format!("line {line}: {why}"))?;
        if sizes.iter().any(|other| other.name == size.name) {
            return Err(format!("line {line}: there is a size {:?} already", size.name));
        }
        if sizes.len() == MAX_SIZES {
            return Err(format!("line {line}: more than {MAX_SIZES} sizes"));
        }
        sizes.push(size);
    }
    if sizes.is_empty() {
        return Err("it has no sizes".into());
    }
    sizes.sort_by(|a, b| b.effective_params_b.total_cmp(&a.effective_params_b));
    Ok(sizes)
}

/// The same sizes in plain numbers, so that no other parser can understand them otherwise.
#[must_use]
pub fn write(sizes: &[Size]) -> String {
    let mut text = format!("{NAME},{LAYERS},{PARAMS},{ACCURACY},{WIDTHS},{SKIPPED}\n");
    for size in sizes {
        let skipped = match size.skipped.as_slice() {
            [] => String::new(),
            layers => format!("\"{layers:?}\""),
        };
        let name = size.name.replace('"', "\"\"");
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\"{name}\",{},{},,\"{:?}\",{skipped}",
            size.widths.len(),
            size.effective_params_b,
            size.widths
        );
    }
    text
}

fn check(size: &Size, layers: &str, shape: &Shape) -> Result<(), String> {
    let Size { name, widths, skipped, .. } = size;
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(format!("a size's name has 1 to {MAX_NAME_BYTES} printable bytes"));
    }
    if layers.parse() != Ok(widths.len()) {
        return Err(format!("{LAYERS} is {layers:?}, but there are {} widths", widths.len()));
    }
    let all = shape.widths.len();
    if !skipped.is_sorted_by(|a, b| a < b) {
        return Err("the skipped layers are not in ascending order".into());
    }
    if let Some(layer) =
        skipped.iter().find(|layer| !(shape.first_shared_layer..all).contains(layer))
    {
        return Err(format!(
            "layer {layer} cannot be skipped: only layers {} to {} can",
            shape.first_shared_layer,
            all.saturating_sub(1)
        ));
    }
    let kept = shape.widths.iter().enumerate().filter(|(layer, _)| !skipped.contains(layer));
    if widths.len() + skipped.len() != all {
        return Err(format!(
            "{} widths and {} skipped layers do not add up to the model's {all} layers",
            widths.len(),
            skipped.len()
        ));
    }
    for (width, (layer, full)) in widths.iter().zip(kept) {
        if *width == 0 || width > full {
            return Err(format!("the width {width} of layer {layer} is not within 1 and {full}"));
        }
    }
    Ok(())
}

fn number(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(format!("{text:?} is not a number")),
    }
}

/// `[2_048 * 8, 96]`, or nothing at all for an empty list.
fn list(text: &str) -> Result<Vec<u64>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .ok_or_else(|| format!("{} is not a list in brackets", shortened(text)))?;
    if inner.trim().is_empty() {
        return Ok(Vec::new());
    }
    inner.split(',').map(product).collect()
}

fn product(text: &str) -> Result<u64, String> {
    let wrong = || format!("{} is not a whole number or a product of some", shortened(text));
    let mut product: u64 = 1;
    for factor in text.split('*') {
        let digits = factor.trim().replace('_', "");
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        let factor: u64 = digits.parse().map_err(|_| wrong())?;
        product = product.checked_mul(factor).ok_or_else(wrong)?;
    }
    Ok(product)
}

fn shortened(text: &str) -> String {
    let mut short: String = text.trim().chars().take(40).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(layers: usize, width: u64) -> Shape {
        Shape { widths: vec![width; layers], first_shared_layer: 20 }
    }

    fn row(cells: &str) -> Result<Vec<Size>, String> {
        let text = format!("{NAME},{LAYERS},{PARAMS},{ACCURACY},{WIDTHS},{SKIPPED}\n{cells}\n");
        parse(&text, &Shape { widths: vec![96; 4], first_shared_layer: 2 })
    }

    #[test]
    fn the_published_table_is_read() {
        let sizes = parse(PUBLISHED, &shape(35, 16384)).unwrap();
        assert_eq!(sizes.len(), 16);
        assert_eq!((sizes[0].name.as_str(), sizes[0].effective_params_b), ("E4B", 3.98));
        assert_eq!(sizes[0].widths, [16384; 35]);
        let last = sizes.last().unwrap();
        assert_eq!(
            (last.name.as_str(), last.skipped.as_slice()),
            ("E2B", &[20, 21, 22, 23, 24][..])
        );
        assert_eq!(last.widths, [8192; 30]);
        assert!(sizes.is_sorted_by(|a, b| a.effective_params_b >= b.effective_params_b));
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let sizes = parse(PUBLISHED, &shape(35, 16384)).unwrap();
        assert_eq!(parse(&write(&sizes), &shape(35, 16384)).unwrap(), sizes);
    }

    #[test]
    fn a_small_table_is_read() {
        let sizes = row("tiny,3,0.5,,\"[9_6, 24*2, 1 * 2 * 8]\",[3]").unwrap();
        assert_eq!(sizes[0].widths, [96, 48, 16]);
        assert_eq!(sizes[0].skipped, [3]);
    }

    #[test]
    fn hostile_tables_are_refused_with_the_line() {
        for (cells, why) in [
            ("", "no sizes"),
            ("a,4,1,,\"[96, 96, 96]\",", "there are 3 widths"),
            ("a,3,1,,\"[96, 96, 96]\",", "do not add up"),
            ("a,4,1,,\"[96, 96, 96, 97]\",", "width 97 of layer 3"),
            ("a,4,1,,\"[96, 96, 96, 0]\",", "width 0 of layer 3"),
            ("a,3,1,,\"[96, 96, 96]\",[1]", "layer 1 cannot be skipped"),
            ("a,3,1,,\"[96, 96, 96]\",[4]", "layer 4 cannot be skipped"),
            ("a,2,1,,\"[96, 96]\",\"[3, 3]\"", "ascending"),
            ("a,3,1,,\"[96, 96, 96]\",[99999999999999999999]", "line 2"),
            ("a,4,1,,\"[18446744073709551615 * 2, 96, 96, 96]\",", "not a whole number"),
            ("a,4,1,,\"[-1, 96, 96, 96]\",", "not a whole number"),
            ("a,4,1,,\"96, 96, 96, 96\",", "not a list"),
            ("a,4,NaN,,\"[96, 96, 96, 96]\",", "not a number"),
            (",4,1,,\"[96, 96, 96, 96]\",", "printable"),
            ("a,4,1,,\"[96, 96, 96, 96]\",,,,", "line: 2"),
            ("a,4,1,,\"[96, 96, 96, 96]\",\na,4,1,,\"[96, 96, 96, 96]\",", "already"),
            ("a,4,1,,\"[96, 96, 96, 96", "line: 2"),
        ] {
            let error = row(cells).unwrap_err();
            assert!(error.contains(why), "{cells}: {error}");
        }
        assert!(parse("name,x\n", &shape(4, 96)).unwrap_err().contains("no column"));
    }
}
