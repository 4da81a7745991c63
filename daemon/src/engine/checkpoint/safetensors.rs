//! The header of a safetensors file: which tensors it holds. Their data is never read. The file may
//! come from anywhere, so nothing in it is believed. Called by the parent module.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

/// A real model's header has a third of a MiB.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// One tensor, as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// `F32`, `F16`, `BF16`, …
    pub dtype: String,
    /// Outermost first.
    pub shape: Vec<u64>,
}

impl Tensor {
    /// A tensor of this type and shape.
    pub fn new(dtype: impl Into<String>, shape: impl Into<Vec<u64>>) -> Self {
        Self { dtype: dtype.into(), shape: shape.into() }
    }

    /// Bytes of its data; none if the type is unknown or the number is absurd.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let one: u64 = match self.dtype.as_str() {
            "F64" | "I64" | "U64" => 8,
            "F32" | "I32" | "U32" => 4,
            "F16" | "BF16" | "I16" | "U16" => 2,
            "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "I8" | "U8" | "BOOL" => 1,
            _ => return None,
        };
        self.shape.iter().try_fold(one, |product, n| product.checked_mul(*n))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads one file's header. The error names the tensor, where it is one's fault.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let io = |error: std::io::Error| error.to_string();
    let mut file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| format!("it has {file_bytes} bytes, too few for a safetensors file"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(format!(
            "its header claims {length} bytes, above the limit of {MAX_HEADER_BYTES}: it is not a \
             safetensors file"
        ));
    }
    let data_bytes = file_bytes.checked_sub(8 + length).ok_or_else(|| {
        format!(
            "its header claims {length} bytes, but the file ends at {file_bytes}: download it again"
        )
    })?;
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(io)?;
    parse(&header, data_bytes)
}

fn parse(header: &[u8], data_bytes: u64) -> Result<BTreeMap<String, Tensor>, String> {
    let entries: Map<String, Value> =
        serde_json::from_slice(header).map_err(|error| format!("its header: {error}"))?;
    let mut tensors = BTreeMap::new();
    let mut places = Vec::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let entry =
            Entry::deserialize(entry).map_err(|error| format!("tensor {name:?}: {error}"))?;
        let (from, to) = entry.data_offsets;
        let tensor = Tensor { dtype: entry.dtype, shape: entry.shape };
        let bytes = tensor.bytes().ok_or_else(|| {
            format!("tensor {name:?}: type {:?} with shape {:?}", tensor.dtype, tensor.shape)
        })?;
        if to.checked_sub(from) != Some(bytes) {
            return Err(format!(
                "tensor {name:?}: offsets {from} to {to} for {bytes} bytes of data"
            ));
        }
        if to > data_bytes {
            return Err(format!(
                "tensor {name:?} ends at {to}, but there are {data_bytes} bytes of data: the file is \
                 cut off, download it again"
            ));
        }
        places.push((from, to, name.clone()));
        tensors.insert(name, tensor);
    }
    places.sort_unstable();
    let mut end = 0;
    for (from, to, name) in places {
        if from != end {
            let what =
                if from < end { "overlaps the one before it" } else { "leaves a gap before it" };
            return Err(format!("tensor {name:?} {what}"));
        }
        end = to;
    }
    if end != data_bytes {
        return Err(format!("{} bytes follow its last tensor", data_bytes - end));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        read(file.path())
    }

    fn with_header(header: &str, data: usize) -> Result<BTreeMap<String, Tensor>, String> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; data]);
        file(&bytes)
    }

    #[test]
    fn a_header_is_read() {
        let tensors = with_header(
            r#"{"__metadata__":{"format":"pt"},
                "b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},
                "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
            8,
        )
        .unwrap();
        assert_eq!(tensors["a"], Tensor::new("F32", []));
        assert_eq!(tensors["b"], Tensor::new("BF16", [2, 1]));
    }

    #[test]
    fn hostile_files_are_refused_by_name() {
        assert!(file(b"").unwrap_err().contains("too few"));
        assert!(file(&u64::MAX.to_le_bytes()).unwrap_err().contains("above the limit"));
        assert!(file(&1000_u64.to_le_bytes()).unwrap_err().contains("ends at 8"));
        assert!(with_header("{", 0).unwrap_err().contains("its header"));
        assert!(with_header("[]", 0).unwrap_err().contains("its header"));
        for (entry, data, why) in [
            (r#"{"dtype":"F32","shape":[1]}"#, 4, "data_offsets"),
            (r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}"#, 4, "unknown field"),
            (r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4, "invalid value"),
            (r#"{"dtype":"F3","shape":[1],"data_offsets":[0,4]}"#, 4, "type"),
            (r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#, 4, "type"),
            (r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4, "offsets 4 to 0"),
            (r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4, "8 bytes of data"),
            (r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 3, "cut off"),
            (r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8, "gap"),
            (r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 5, "follow its last"),
        ] {
            let error = with_header(&format!(r#"{{"layers.0":{entry}}}"#), data).unwrap_err();
            assert!(error.contains(why), "{entry}: {error}");
        }
        let overlap = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                          "b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}"#;
        assert!(with_header(overlap, 6).unwrap_err().contains("\"b\" overlaps"));
    }
}
