//! Lets a template from a file run without trust in it.
//!
//! The library counts steps only with a feature that would change what the rest of the program is built
//! with. So the template's source is changed before it is compiled (`source`): a check stands in every
//! loop and condition, and around every value that is kept. A value has a largest size, all that is kept
//! has one too, a rendering has a deadline, and what no chat template needs (macros, inclusion,
//! repetition of strings) is refused.

mod source;
mod walk;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use minijinja::value::{Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind, State};

pub use source::Refused;
pub(super) use source::guarded;

/// The name of the guard in the template; none of the template's own names begins like this.
pub(super) const NAME: &str = "__guard";
/// A rendering takes far less than a millisecond.
const LONGEST: Duration = Duration::from_secs(1);
/// All that a template keeps, in largest values.
const KEPT: usize = 16;

/// Watches one rendering.
#[derive(Debug)]
pub(super) struct Guard {
    deadline: Instant,
    /// Bytes of the largest value.
    pub largest: usize,
    kept: Mutex<Kept>,
}

/// Bytes that the template keeps.
#[derive(Debug, Default)]
struct Kept {
    /// By the number of the assignment; a tag in a loop replaces what it assigned before.
    names: BTreeMap<usize, usize>,
    /// All of them and what is in namespaces, also in those that are gone.
    all: usize,
}

impl Guard {
    /// For a rendering whose messages have this many bytes.
    pub fn new(messages_bytes: usize) -> Arc<Self> {
        let largest = messages_bytes.saturating_mul(2).saturating_add(64 * 1024);
        let deadline = Instant::now() + LONGEST;
        Arc::new(Self { deadline, largest, kept: Mutex::default() })
    }

    /// The guard of the rendering that `state` belongs to.
    pub fn of(state: &State) -> Result<Arc<Self>, Error> {
        state
            .lookup(NAME)
            .and_then(|value| value.downcast_object::<Self>())
            .ok_or_else(|| invalid("the template has no guard"))
    }

    /// Whether the rendering may go on.
    pub fn step(&self) -> Result<(), Error> {
        if Instant::now() > self.deadline {
            return Err(invalid("the template takes too long"));
        }
        Ok(())
    }

    /// Whether a value of this size may be made.
    pub fn fits(&self, bytes: usize) -> Result<(), Error> {
        self.step()?;
        if bytes > self.largest {
            return Err(invalid("the template makes too long a text"));
        }
        Ok(())
    }

    /// Whether this value may be used.
    pub fn check(&self, value: &Value) -> Result<(), Error> {
        self.walk(value).map(drop)
    }

    fn walk(&self, value: &Value) -> Result<walk::Found, Error> {
        let found = walk::walk(value, self.largest)
            .ok_or_else(|| invalid("the template makes too large a value"))?;
        self.step()?;
        Ok(found)
    }

    /// What a loop may go through.
    fn over(&self, value: &Value) -> Result<Value, Error> {
        let found = self.walk(value)?;
        walk::settled(value, &found)
    }

    /// What the assignment of this number may give a name.
    fn set(&self, tag: usize, value: &Value) -> Result<Value, Error> {
        let found = self.walk(value)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kept.names.insert(tag, found.bytes).unwrap_or_default();
        self.replace(&mut kept, before, found.bytes)?;
        walk::settled(value, &found)
    }

    /// What may be in a namespace, in place of `old`.
    pub fn keep(&self, old: &Value, value: &Value) -> Result<Value, Error> {
        let found = self.walk(value)?;
        // A namespace that is in itself has no end: printing it would overflow the stack.
        if found.changes {
            return Err(invalid("the template puts a namespace or a loop into a namespace"));
        }
        let before = self.walk(old)?.bytes;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.replace(&mut kept, before, found.bytes)?;
        walk::settled(value, &found)
    }

    fn replace(&self, kept: &mut Kept, before: usize, bytes: usize) -> Result<(), Error> {
        kept.all = kept.all.saturating_sub(before).saturating_add(bytes);
        if kept.all > self.largest.saturating_mul(KEPT) {
            return Err(invalid("the template keeps too much"));
        }
        Ok(())
    }
}

/// An error of the rendering.
pub(super) fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

impl Object for Guard {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    /// True, if the rendering may go on.
    fn call(self: &Arc<Self>, _: &State<'_, '_>, _: &[Value]) -> Result<Value, Error> {
        self.step().map(|()| Value::from(true))
    }

    /// The last argument, if it may be kept.
    fn call_method(
        self: &Arc<Self>,
        _: &State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match (method, args) {
            ("over", [value]) => self.over(value),
            ("set", [tag, value]) => self.set(tag.as_usize().unwrap_or_default(), value),
            ("keep", [old, value]) => self.keep(old, value),
            _ => Err(invalid("several values are assigned at once")),
        }
    }
}
