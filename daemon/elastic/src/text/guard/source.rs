//! Puts the guard's checks into a template's source, and refuses what no chat template needs.

use super::NAME;

/// The longest source.
const SOURCE: usize = 64 * 1024;
/// Places in one tag where values are put together.
const JOINTS: usize = 40;
/// Signs and words in one tag that take operands. The library goes deeper into its stack with each, and
/// has no limit of its own but for brackets and statements inside each other.
const OPERATORS: usize = 256;
/// The library takes each for a condition inside the one before it.
const ELIFS: usize = 128;
/// Loops inside each other; each holds what it goes through.
const LOOPS: usize = 16;
/// Statements that a template may use.
const STATEMENTS: [&str; 9] =
    ["for", "else", "endfor", "if", "elif", "endif", "set", "break", "continue"];
/// Words that are operators.
const WORDS: [&str; 7] = ["and", "or", "not", "if", "else", "is", "in"];

/// What a template has that none needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is too long.
    #[error("it has more than {SOURCE} bytes")]
    Length,
    /// A statement that is not known here.
    #[error("it uses the statement {0:?}")]
    Statement(String),
    /// Something that could make much of little.
    #[error("it uses {0}")]
    Construct(&'static str),
    /// A tag without an end.
    #[error("a tag has no end")]
    Open,
}

/// The source with checks put in.
pub fn guarded(source: &str) -> Result<String, Refused> {
    if source.len() > SOURCE {
        return Err(Refused::Length);
    }
    let mut out = String::with_capacity(source.len() * 2);
    let mut rest = source;
    let mut counts = Counts::default();
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        rest = match tag.as_bytes().get(1) {
            Some(b'#') => {
                let sign = usize::from(matches!(tag.as_bytes().get(2), Some(b'-' | b'+')));
                let inner = tag.get(2 + sign..).unwrap_or_default();
                let end = inner.find("#}").ok_or(Refused::Open)? + 4 + sign;
                out.push_str(tag.get(..end).unwrap_or_default());
                tag.get(end..).unwrap_or_default()
            }
            Some(b'{' | b'%') => {
                let body = Body::read(tag)?;
                body.write(&mut counts, &mut out)?;
                tag.get(body.whole.len()..).unwrap_or_default()
            }
            _ => {
                out.push('{');
                tag.get(1..).unwrap_or_default()
            }
        };
    }
    out.push_str(rest);
    Ok(out)
}

/// Statements of a template so far.
#[derive(Default)]
struct Counts {
    sets: usize,
    elifs: usize,
    /// Those without an end yet.
    loops: usize,
}

/// One tag, from its braces to its braces.
struct Body<'a> {
    whole: &'a str,
    /// `{%-` or the like.
    begin: &'a str,
    inner: &'a str,
    /// `-%}` or the like.
    end: &'a str,
    /// Where in `inner` begins what a loop goes through, behind its `in`.
    looped: Option<usize>,
    /// Where in `inner` the condition of a loop begins, behind its `if`.
    condition: Option<usize>,
    /// Where in `inner` an assignment's value begins.
    assigned: Option<usize>,
}

impl<'a> Body<'a> {
    /// Reads the tag that `tag` begins with, as the library's lexer does: strings have no ends in
    /// them, nor has what stands between brackets.
    fn read(tag: &'a str) -> Result<Self, Refused> {
        let bytes = tag.as_bytes();
        let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
        let close = if byte(1) == b'%' { b'%' } else { b'}' };
        let start = if matches!(byte(2), b'-' | b'+') { 3 } else { 2 };
        let (mut at, mut depth, mut joints) = (start, 0_usize, 0);
        let mut operators = 0;
        let (mut looped, mut condition, mut assigned) = (None, None, None);
        let end = loop {
            let sign = usize::from(matches!(byte(at), b'-' | b'+'));
            if depth == 0 && byte(at + sign) == close && byte(at + sign + 1) == b'}' {
                break at + sign + 2;
            }
            operators += usize::from(operates(byte(at)));
            match byte(at) {
                0 => return Err(Refused::Open),
                quote @ (b'"' | b'\'') => {
                    at += 1;
                    while byte(at) != quote {
                        if at >= bytes.len() {
                            return Err(Refused::Open);
                        }
                        at += if byte(at) == b'\\' { 2 } else { 1 };
                    }
                }
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.checked_sub(1).ok_or(Refused::Open)?,
                b'*' => return Err(Refused::Construct("multiplication")),
                b'~' | b'+' | b',' => joints += 1,
                b'=' | b'!' | b'<' | b'>' if byte(at + 1) == b'=' => at += 1,
                b'=' if depth == 0 && assigned.is_none() => assigned = Some(at + 1 - start),
                b'_' | b'a'..=b'z' | b'A'..=b'Z' | 0x80.. => {
                    let word = tag.get(at..).unwrap_or_default();
                    let end = word.find(|c: char| c != '_' && !c.is_alphanumeric());
                    let word = word.get(..end.unwrap_or(word.len())).unwrap_or_default();
                    if word.starts_with(NAME) {
                        return Err(Refused::Construct("a name that is taken"));
                    }
                    if word == "recursive" {
                        return Err(Refused::Construct("recursion"));
                    }
                    operators += usize::from(WORDS.contains(&word));
                    if word == "in" && depth == 0 && looped.is_none() {
                        looped = Some(at + 2 - start);
                    }
                    if word == "if" && depth == 0 && condition.is_none() {
                        condition = Some(at + 2 - start);
                    }
                    // What is no letter here may be one for the library.
                    at += word.len().max(1) - 1;
                }
                _ => {}
            }
            at += 1;
        };
        if joints > JOINTS {
            return Err(Refused::Construct("a tag that joins too many values"));
        }
        if operators > OPERATORS {
            return Err(Refused::Construct("a tag with too many operators"));
        }
        let sign = usize::from(matches!(byte(end - 3), b'-' | b'+') && end - 3 >= start);
        let (whole, last) = (tag.get(..end), end - 2 - sign);
        Ok(Self {
            whole: whole.ok_or(Refused::Open)?,
            begin: tag.get(..start).ok_or(Refused::Open)?,
            inner: tag.get(start..last).ok_or(Refused::Open)?,
            end: tag.get(last..end).ok_or(Refused::Open)?,
            looped,
            condition,
            assigned,
        })
    }

    /// The tag with its check.
    fn write(&self, counts: &mut Counts, out: &mut String) -> Result<(), Refused> {
        let Self { begin, inner, end, .. } = self;
        if begin.starts_with("{{") {
            out.push_str(self.whole);
            return Ok(());
        }
        let word = inner.split_ascii_whitespace().next().unwrap_or_default();
        let name =
            word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        if !STATEMENTS.contains(&name) {
            return Err(Refused::Statement(word.to_owned()));
        }
        match name {
            "for" => {
                counts.loops += 1;
                if counts.loops > LOOPS {
                    return Err(Refused::Construct("too many loops inside each other"));
                }
                self.write_loop(out)?;
            }
            "if" | "elif" => {
                counts.elifs += usize::from(name == "elif");
                if counts.elifs > ELIFS {
                    return Err(Refused::Construct("too many alternatives"));
                }
                let condition = inner.trim_ascii_start().get(name.len()..).unwrap_or_default();
                out.extend([begin, " ", name, " ", NAME, "() and (", condition, ")", end]);
            }
            "set" => {
                counts.sets += 1;
                self.write_set(counts.sets, out)?;
            }
            _ => {
                counts.loops = counts.loops.saturating_sub(usize::from(name == "endfor"));
                out.push_str(self.whole);
            }
        }
        Ok(())
    }

    /// A loop, the guard around what it goes through, and a step in each turn of it.
    fn write_loop(&self, out: &mut String) -> Result<(), Refused> {
        let Self { begin, inner, end, .. } = self;
        let broken = || Refused::Construct("a loop over nothing");
        let looped = self.looped.ok_or_else(broken)?;
        let last = self.condition.map_or(inner.len(), |at| at - "if".len());
        let head = inner.get(..looped).ok_or_else(broken)?;
        let value = inner.get(looped..last).ok_or_else(broken)?;
        out.extend([begin, head, " ", NAME, ".over(", value, ")"]);
        if let Some(condition) = self.condition.and_then(|at| inner.get(at..)) {
            out.extend([" if ", NAME, "() and (", condition, ")"]);
        }
        // With the same end, so that the same white space is left out.
        out.extend([end, "{% set ", NAME, "_step = ", NAME, "() ", end]);
        Ok(())
    }

    /// An assignment, the guard around its value. `tag` is its number.
    fn write_set(&self, tag: usize, out: &mut String) -> Result<(), Refused> {
        let Self { begin, inner, end, .. } = self;
        let (head, value) = self
            .assigned
            .and_then(|at| inner.split_at_checked(at))
            .ok_or(Refused::Construct("a block as a value"))?;
        let target = head.trim_ascii_start().trim_end_matches('=');
        let target = target.get("set".len()..).unwrap_or_default();
        if !target.contains('.') {
            out.extend([begin, head, " ", NAME, ".set(", &tag.to_string(), ", ", value, ")", end]);
            return Ok(());
        }
        if target.contains(',') {
            return Err(Refused::Construct("several attributes in one assignment"));
        }
        // The target as a value is what the assignment replaces.
        out.extend([begin, head, " ", NAME, ".keep(", target, ", ", value, ")", end]);
        Ok(())
    }
}

/// Whether a byte outside of strings is an operator or a bracket's beginning.
fn operates(byte: u8) -> bool {
    byte.is_ascii_punctuation() && !matches!(byte, b')' | b']' | b'}' | b'_' | b'"' | b'\'')
}
