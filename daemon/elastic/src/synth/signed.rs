//! Makes the list of token types one of signed numbers, the only ones that llama.cpp takes there.

use std::io::{self, Write};

/// The list's key, the code of a list, and that of unsigned numbers.
const UNSIGNED: &[u8] = b"tokenizer.ggml.token_type\x09\0\0\0\x04\0\0\0";
/// The code of signed numbers of the same width.
const SIGNED: [u8; 4] = [5, 0, 0, 0];

/// Passes a file through, whose header comes in one piece.
pub struct Signed<W> {
    out: W,
    in_header: bool,
}

impl<W: Write> Signed<W> {
    pub fn new(out: W) -> Self {
        Self { out, in_header: true }
    }
}

impl<W: Write> Write for Signed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !std::mem::take(&mut self.in_header) {
            return self.out.write(bytes);
        }
        let place = bytes.windows(UNSIGNED.len()).position(|window| window == UNSIGNED);
        match place.and_then(|place| bytes.split_at_checked(place + UNSIGNED.len())) {
            Some((before, after)) => {
                let kept = before.len() - SIGNED.len();
                self.out.write_all(before.get(..kept).unwrap_or_default())?;
                self.out.write_all(&SIGNED)?;
                self.out.write_all(after)?;
            }
            None => self.out.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
