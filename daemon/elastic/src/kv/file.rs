//! A sequence's caches as bytes, to be kept outside of memory. Only rows in use are written, in the order of
//! the layers, keys before values; numbers are little-endian. What reads them back knows model and store.

use std::io::{self, Read, Write};

use super::{Rows, Sequence, Shape, Store};
use crate::config::Config;

/// Values that are turned into bytes at once.
const CHUNK: usize = 4096;

impl Sequence {
    /// Writes the caches.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        for number in [self.capacity(), self.len(), self.first] {
            out.write_all(&(number as u64).to_le_bytes())?;
        }
        for layer in &self.layers {
            let rows = layer.rows.min(self.len());
            layer.keys.write_to(rows, layer.rows, out)?;
            layer.values.write_to(rows, layer.rows, out)?;
        }
        Ok(())
    }

    /// Reads caches of this model and store back. An error if they cannot be such.
    pub fn read_from(config: &Config, store: Store, from: &mut impl Read) -> io::Result<Self> {
        let mut number = || -> io::Result<usize> {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes)?;
            usize::try_from(u64::from_le_bytes(bytes)).map_err(io::Error::other)
        };
        let damaged = || io::Error::other("these are no caches of this model");
        let (capacity, len, first) = (number()?, number()?, number()?);
        if capacity > config.context || len > capacity || first > len {
            return Err(damaged());
        }
        let mut sequence = Self::new(&Shape::new(config, capacity, store));
        // No ring has more than its length.
        if len - first > sequence.shape.ring {
            return Err(damaged());
        }
        for layer in &mut sequence.layers {
            let rows = layer.rows.min(len);
            layer.keys.read_from(rows, layer.rows, from)?;
            layer.values.read_from(rows, layer.rows, from)?;
        }
        sequence.len = len;
        sequence.first = first;
        Ok(sequence)
    }
}

impl Rows {
    /// Writes the first `rows` of `all` rows.
    fn write_to(&self, rows: usize, all: usize, out: &mut impl Write) -> io::Result<()> {
        fn numbers<T: Copy, const N: usize>(
            values: &[T],
            bytes: fn(T) -> [u8; N],
            out: &mut impl Write,
        ) -> io::Result<()> {
            for chunk in values.chunks(CHUNK) {
                let chunk: Vec<u8> = chunk.iter().flat_map(|value| bytes(*value)).collect();
                out.write_all(&chunk)?;
            }
            Ok(())
        }
        match self {
            Self::F32(values) => numbers(first(values, rows, all), f32::to_le_bytes, out),
            Self::F16(values) => numbers(first(values, rows, all), u16::to_le_bytes, out),
            Self::Q8_0(values) => out.write_all(first(values, rows, all)),
        }
    }

    /// Reads the first `rows` of `all` rows.
    fn read_from(&mut self, rows: usize, all: usize, from: &mut impl Read) -> io::Result<()> {
        fn numbers<T, const N: usize>(
            values: &mut [T],
            value: fn([u8; N]) -> T,
            from: &mut impl Read,
        ) -> io::Result<()> {
            let mut buffer = vec![0; CHUNK * N];
            for chunk in values.chunks_mut(CHUNK) {
                let bytes = buffer.get_mut(..chunk.len() * N).unwrap_or_default();
                from.read_exact(bytes)?;
                let (bytes, _) = bytes.as_chunks::<N>();
                chunk.iter_mut().zip(bytes).for_each(|(to, bytes)| *to = value(*bytes));
            }
            Ok(())
        }
        match self {
            Self::F32(values) => numbers(first_mut(values, rows, all), f32::from_le_bytes, from),
            Self::F16(values) => numbers(first_mut(values, rows, all), u16::from_le_bytes, from),
            Self::Q8_0(values) => from.read_exact(first_mut(values, rows, all)),
        }
    }
}

fn first<T>(values: &[T], rows: usize, all: usize) -> &[T] {
    values.get(..values.len() / all.max(1) * rows).unwrap_or(values)
}

fn first_mut<T>(values: &mut [T], rows: usize, all: usize) -> &mut [T] {
    let len = (values.len() / all.max(1) * rows).min(values.len());
    values.get_mut(..len).unwrap_or_default()
}
