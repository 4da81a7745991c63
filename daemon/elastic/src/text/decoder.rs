//! Makes text of an answer's tokens as they come.

use super::tokenizer::Tokenizer;
use super::vocab::{Kind, SPACE};

/// Makes text of tokens as they come: characters only whole.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// The first bytes of a character.
    held: Vec<u8>,
}

impl Decoder {
    /// The text that is certain with the next token.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        match tokenizer.kind(id) {
            // A byte is never a space's replacement.
            Some(Kind::Byte) => {
                self.held.extend_from_slice(tokenizer.piece(id));
                self.valid()
            }
            Some(Kind::Normal | Kind::UserDefined) => {
                self.held.extend_from_slice(tokenizer.piece(id));
                self.valid().replace(SPACE, " ")
            }
            Some(Kind::Control | Kind::Unknown | Kind::Unused) | None => String::new(),
        }
    }

    /// The answer is over: what was held back never became a character.
    pub fn finish(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        String::from_utf8_lossy(&held).into_owned()
    }

    /// Whether the first bytes of a character wait for the others.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes out what is whole or broken.
    fn valid(&mut self) -> String {
        let mut text = String::new();
        let mut open = Vec::new();
        let mut chunks = self.held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            if chunks.peek().is_none()
                && std::str::from_utf8(chunk.invalid())
                    .is_err_and(|error| error.error_len().is_none())
            {
                open.extend_from_slice(chunk.invalid());
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.held = open;
        text
    }
}
