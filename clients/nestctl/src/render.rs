//! What a person sees: text on standard output, progress on standard error, tables. All commands
//! write through it. Control characters never reach a terminal: an answer, or a model's name, might
//! hold escape sequences.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal, Stdout, Write},
};

use serde_json::Value;

/// Standard output, and progress on standard error.
pub struct Screen {
    /// Whether to print JSON instead of text.
    pub json: bool,
    out: Stdout,
    out_is_terminal: bool,
    err_is_terminal: bool,
    line: Line,
}

/// What stands on the line where the next character would go.
#[derive(Clone, Copy, PartialEq)]
enum Line {
    Nothing,
    /// Text that has not ended its line.
    Text,
    /// Progress, which gives way to whatever comes.
    Progress,
}

impl Screen {
    pub fn new(json: bool) -> Self {
        Self {
            json,
            out: io::stdout(),
            out_is_terminal: io::stdout().is_terminal(),
            err_is_terminal: io::stderr().is_terminal(),
            line: Line::Nothing,
        }
    }

    /// Whether a person watches the progress.
    pub fn shows_progress(&self) -> bool {
        self.err_is_terminal && !self.json
    }

    /// Writes text at once, as it is where it goes into a pipe or a file.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.clear();
        if self.out_is_terminal {
            self.out.write_all(clean(text).as_bytes())?;
        } else {
            self.out.write_all(text.as_bytes())?;
        }
        self.line = if text.ends_with('\n') { Line::Nothing } else { Line::Text };
        self.out.flush()
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// Writes a value as one line.
    pub fn value(&mut self, value: &Value) -> io::Result<()> {
        self.line(&value.to_string())
    }

    /// Ends a line that text has begun.
    pub fn end_line(&mut self) -> io::Result<()> {
        if self.line == Line::Text { self.text("\n") } else { Ok(()) }
    }

    /// The terminal itself has ended the line.
    pub fn at_line_start(&mut self) {
        self.line = Line::Nothing;
    }

    /// Shows progress in place of the last; only a terminal has a place for it.
    pub fn progress(&mut self, text: &str) {
        // In the middle of an answer there is none.
        if self.shows_progress() && self.line != Line::Text {
            let _ = write!(io::stderr(), "\r\x1b[K{}", clean(text));
            self.line = Line::Progress;
        }
    }

    /// Tells something on standard error, on a line of its own.
    pub fn note(&mut self, text: &str) {
        self.clear();
        let text = if self.err_is_terminal { clean(text) } else { text.to_owned() };
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Marks a place in an answer, on standard error, so that the answer itself stays as it is.
    pub fn mark(&mut self, text: &str) {
        if self.json {
            return;
        }
        self.clear();
        let (dim, plain) = if self.err_is_terminal { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let _ = write!(io::stderr(), "{dim}{}{plain}", clean(text));
    }

    /// Takes the progress away.
    pub fn clear(&mut self) {
        if self.line == Line::Progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
            self.line = Line::Nothing;
        }
    }

    /// Leaves the terminal in order, whatever happened.
    pub fn close(&mut self) {
        self.clear();
        if self.out_is_terminal {
            let _ = self.end_line();
        }
    }
}

/// The text without control characters other than line ends and tabs.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// A bar of 30 places and the percentage.
pub fn bar(fraction: f64) -> String {
    const PLACES: usize = 30;
    let filled = (0..PLACES).filter(|place| (*place as f64 + 0.5) / 30.0 <= fraction).count();
    let bar = "#".repeat(filled) + &".".repeat(PLACES - filled);
    format!("[{bar}] {:3.0} %", fraction * 100.0)
}

/// Mebibytes, with a decimal where there are few.
pub fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10.0 { format!("{mib:.1}") } else { format!("{mib:.0}") }
}

/// Columns as wide as their widest cell, two spaces apart.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A table without headings: what, and how much.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let rows: Vec<_> =
        rows.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect();
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_lose_their_teeth() {
        assert_eq!(clean("a\x1b[31mb\u{9b}2J\x07\tc\r\n"), "a[31mb2J\tc\n");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "bb".into()], vec!["ccc".into(), "ä".into()]];
        assert_eq!(table(&rows), "a    bb\nccc  ä\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn a_bar_fills() {
        assert!(bar(0.0).starts_with("[....") && bar(0.0).ends_with("  0 %"));
        assert!(bar(1.0).ends_with("###] 100 %"));
        assert_eq!(bar(0.5).matches('#').count(), 15);
    }
}
