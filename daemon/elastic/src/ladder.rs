//! The sizes of a model's file: its own table, or the published one, or the whole model alone.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::sizes::{self, Shape, Size};

/// Longer than any table.
const MAX_TABLE_BYTES: u64 = 1 << 20;
/// What the whole E2B model is called and counts, as the published table has it.
const E2B: (&str, f64) = ("E2B", 1.91);

/// The sizes of the model in the file at `path`, largest first. A table beside it is read first:
/// `NAME.sizes.csv` for `NAME.gguf`, else `sizes.csv`. Models of E4B's dimensions have the published
/// sizes, and others one.
pub fn sizes_of(path: &Path, config: &Config) -> Result<Vec<Size>> {
    let widths: Vec<u64> = config.widths.iter().map(|width| *width as u64).collect();
    let shape = Shape { widths, first_shared_layer: config.own_kv };
    if let Some((table, text)) = table_beside(path)? {
        return sizes::parse(&text, &shape)
            .map_err(|problem| Error::format(table.display().to_string(), problem));
    }
    let is = |layers: usize, width: usize| {
        let widths = config.widths.iter().all(|other| *other == width);
        config.hidden == 2048 && config.layers() == layers && config.own_kv == 20 && widths
    };
    if is(35, 16384) {
        return sizes::parse(sizes::PUBLISHED, &shape)
            .map_err(|problem| Error::format("the published sizes", problem));
    }
    let (name, effective_params_b) = if is(30, 8192) { E2B } else { ("full", 0.0) };
    let name = name.to_owned();
    Ok(vec![Size { name, effective_params_b, widths: shape.widths, skipped: Vec::new() }])
}

/// Writes a model's own table beside another file that has none.
pub(crate) fn copy_table(from: &Path, to: &Path) -> Result<()> {
    let Some((_, text)) = table_beside(from)? else { return Ok(()) };
    match table_beside(to)? {
        Some((_, same)) if same == text => Ok(()),
        Some((other, _)) => {
            let problem = "it is there already, and other than the model's own";
            Err(Error::format(other.display().to_string(), problem))
        }
        None => {
            let table = to.with_extension("sizes.csv");
            std::fs::write(&table, text).map_err(|source| Error::Io { path: table, source })
        }
    }
}

fn table_beside(path: &Path) -> Result<Option<(PathBuf, String)>> {
    for table in [path.with_extension("sizes.csv"), path.with_file_name("sizes.csv")] {
        let io = |source| Error::Io { path: table.clone(), source };
        let file = match File::open(&table) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io(error)),
        };
        let mut text = String::new();
        let read = file.take(MAX_TABLE_BYTES + 1).read_to_string(&mut text).map_err(io)?;
        if read as u64 > MAX_TABLE_BYTES {
            let problem = format!("it is longer than {MAX_TABLE_BYTES} bytes");
            return Err(Error::format(table.display().to_string(), problem));
        }
        return Ok(Some((table, text)));
    }
    Ok(None)
}
