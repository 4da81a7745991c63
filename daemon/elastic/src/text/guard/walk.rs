//! What is in a value.

use minijinja::Error;
use minijinja::value::{DynObject, Value, ValueKind};

/// Lists and maps inside each other.
const DEPTH: usize = 16;

/// What was found in a value.
#[derive(Debug, Default)]
pub struct Found {
    pub bytes: usize,
    /// Whether something in it is computed when it is looked at. Such values hold what they are computed
    /// from: a long row of them overflows the stack, and one may hide a namespace.
    pub lazy: bool,
    /// Whether it has something that changes, a namespace or a loop.
    pub changes: bool,
}

/// Goes through a value; None if it has more bytes than `most` or goes too deep.
pub fn walk(value: &Value, most: usize) -> Option<Found> {
    let mut found = Found::default();
    enter(value, most, DEPTH, &mut found)?;
    Some(found)
}

fn enter(value: &Value, most: usize, depth: usize, found: &mut Found) -> Option<()> {
    found.bytes = found.bytes.checked_add(value.as_str().map_or(8, str::len))?;
    if found.bytes > most {
        return None;
    }
    found.lazy |= value.kind() == ValueKind::Iterable;
    found.changes |= changes(value);
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        let depth = depth.checked_sub(1)?;
        for item in value.try_iter().ok()? {
            if value.kind() == ValueKind::Map {
                enter(&value.get_item(&item).ok()?, most, depth, found)?;
            }
            enter(&item, most, depth, found)?;
        }
    }
    Some(())
}

/// Whether it is a namespace or the state of a loop. The library does not say so in another way.
fn changes(value: &Value) -> bool {
    let name = value.as_object().map_or("", DynObject::type_name);
    name.ends_with("::Namespace") || name.ends_with("::Loop")
}

/// The value with nothing in it that is computed later; what changes stays what it is.
pub fn settled(value: &Value, found: &Found) -> Result<Value, Error> {
    if found.lazy { copied(value) } else { Ok(value.clone()) }
}

/// Goes as deep as [`walk`] went.
fn copied(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        _ if changes(value) => Ok(value.clone()),
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.map(|item| copied(&item)).collect::<Result<Value, Error>>()
        }
        ValueKind::Map => value
            .try_iter()?
            .map(|key| Ok((copied(&key)?, copied(&value.get_item(&key)?)?)))
            .collect::<Result<Value, Error>>(),
        _ => Ok(value.clone()),
    }
}
