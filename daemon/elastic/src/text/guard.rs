//! Lets a template from a file run without trust in it.
//!
//! The library counts steps only with a feature that would change what the rest of the program is built
//! with. So the template's source is changed before it is compiled: a check stands in every loop and
//! condition, and around every assignment. A value has a largest size, a rendering has a deadline, and
//! what no chat template needs (macros, inclusion, repetition of strings) is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use minijinja::value::{Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The name of the guard in the template; none of the template's own names begins like this.
pub(super) const NAME: &str = "__guard";
/// The longest source.
const SOURCE: usize = 64 * 1024;
/// A rendering takes far less than a millisecond.
const LONGEST: Duration = Duration::from_secs(1);
/// Places in one tag where values are put together.
const JOINTS: usize = 40;
/// Statements that a template may use.
const STATEMENTS: [&str; 9] =
    ["for", "else", "endfor", "if", "elif", "endif", "set", "break", "continue"];

/// Watches one rendering.
#[derive(Debug)]
pub(super) struct Guard {
    deadline: Instant,
    /// Bytes of the largest value.
    pub largest: usize,
}

impl Guard {
    /// For a rendering whose messages have this many bytes.
    pub fn new(messages_bytes: usize) -> Arc<Self> {
        let largest = messages_bytes.saturating_mul(2).saturating_add(64 * 1024);
        Arc::new(Self { deadline: Instant::now() + LONGEST, largest })
    }

    /// The guard of the rendering that `state` belongs to.
    pub fn of(state: &State) -> Result<Arc<Self>, Error> {
        state
            .lookup(NAME)
            .and_then(|value| value.downcast_object::<Self>())
            .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the template has no guard"))
    }

    /// Whether the rendering may go on.
    pub fn step(&self) -> Result<(), Error> {
        if Instant::now() > self.deadline {
            return Err(Error::new(ErrorKind::InvalidOperation, "the template takes too long"));
        }
        Ok(())
    }

    /// Whether a value of this size may be made.
    pub fn fits(&self, bytes: usize) -> Result<(), Error> {
        self.step()?;
        if bytes > self.largest {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "the template makes too long a text",
            ));
        }
        Ok(())
    }

    /// Whether this value may be kept.
    pub fn check(&self, value: &Value) -> Result<(), Error> {
        let mut left = self.largest;
        size(value, &mut left, 16).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, "the template makes too large a value")
        })?;
        self.step()
    }
}

/// Takes a value's bytes from `left`; None if there are more.
fn size(value: &Value, left: &mut usize, depth: usize) -> Option<()> {
    let own = value.as_str().map_or(8, str::len);
    *left = left.checked_sub(own)?;
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        let depth = depth.checked_sub(1)?;
        for item in value.try_iter().ok()? {
            if value.kind() == ValueKind::Map {
                size(&value.get_item(&item).ok()?, left, depth)?;
            }
            size(&item, left, depth)?;
        }
    }
    Some(())
}

impl Object for Guard {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    /// With a value: the value, if it may be kept. Without: true, if the rendering may go on.
    fn call(self: &Arc<Self>, _: &State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        match args {
            [] => self.step().map(|()| Value::from(true)),
            [value] => self.check(value).map(|()| value.clone()),
            _ => {
                Err(Error::new(ErrorKind::InvalidOperation, "several values are assigned at once"))
            }
        }
    }
}

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
pub(super) fn guarded(source: &str) -> Result<String, Refused> {
    if source.len() > SOURCE {
        return Err(Refused::Length);
    }
    let mut out = String::with_capacity(source.len() * 2);
    let mut rest = source;
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
                body.write(&mut out)?;
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

/// One tag, from its braces to its braces.
struct Body<'a> {
    whole: &'a str,
    /// `{%-` or the like.
    begin: &'a str,
    inner: &'a str,
    /// `-%}` or the like.
    end: &'a str,
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
        let (mut condition, mut assigned) = (None, None);
        let end = loop {
            let sign = usize::from(matches!(byte(at), b'-' | b'+'));
            if depth == 0 && byte(at + sign) == close && byte(at + sign + 1) == b'}' {
                break at + sign + 2;
            }
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
        let sign = usize::from(matches!(byte(end - 3), b'-' | b'+') && end - 3 >= start);
        let (whole, last) = (tag.get(..end), end - 2 - sign);
        Ok(Self {
            whole: whole.ok_or(Refused::Open)?,
            begin: tag.get(..start).ok_or(Refused::Open)?,
            inner: tag.get(start..last).ok_or(Refused::Open)?,
            end: tag.get(last..end).ok_or(Refused::Open)?,
            condition,
            assigned,
        })
    }

    /// The tag with its check.
    fn write(&self, out: &mut String) -> Result<(), Refused> {
        let Self { begin, inner, end, .. } = self;
        if begin.starts_with("{{") {
            out.push_str(self.whole);
            return Ok(());
        }
        let split = |at: Option<usize>| at.and_then(|at| inner.split_at_checked(at));
        let word = inner.split_ascii_whitespace().next().unwrap_or_default();
        let name =
            word.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        if !STATEMENTS.contains(&name) {
            return Err(Refused::Statement(word.to_owned()));
        }
        match name {
            "for" => {
                match split(self.condition) {
                    None => out.extend([self.whole]),
                    Some((head, condition)) => {
                        out.extend([begin, head, " ", NAME, "() and (", condition, ")", end]);
                    }
                }
                // With the same end, so that the same white space is left out.
                out.extend(["{% set ", NAME, "_step = ", NAME, "() ", end]);
            }
            "if" | "elif" => {
                let condition = inner.trim_ascii_start().get(name.len()..).unwrap_or_default();
                out.extend([begin, " ", name, " ", NAME, "() and (", condition, ")", end]);
            }
            "set" => {
                let (head, value) =
                    split(self.assigned).ok_or(Refused::Construct("a block as a value"))?;
                out.extend([begin, head, " ", NAME, "(", value, ")", end]);
            }
            _ => out.push_str(self.whole),
        }
        Ok(())
    }
}
