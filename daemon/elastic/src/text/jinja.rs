//! The filters, tests, functions and methods that a chat template may use.
//!
//! Each looks at the size of what it gets, and those that can make much of little look at what they are
//! about to make. What is not here is an error when the template runs.

use minijinja::value::{Rest, Value};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions, tests};
use minijinja_contrib::pycompat;

use super::guard::{Guard, invalid};

/// How a template's own complaint is told from an error in it.
pub(super) const RAISED: &str = "raised: ";
/// The most characters that are looked for at a text's ends: each is compared with each of them.
const STRIPPED: usize = 64;
/// The most numbers that `range` gives.
const RANGE: i64 = 100_000;
/// Methods of strings, lists and maps; `format` is missing, as it can make any length.
const METHODS: [&str; 29] = [
    "upper",
    "lower",
    "islower",
    "isupper",
    "isspace",
    "isdigit",
    "isnumeric",
    "isalnum",
    "isalpha",
    "isascii",
    "strip",
    "lstrip",
    "rstrip",
    "replace",
    "title",
    "split",
    "splitlines",
    "capitalize",
    "count",
    "find",
    "rfind",
    "startswith",
    "endswith",
    "join",
    "keys",
    "values",
    "items",
    "get",
    "append",
];

/// An environment for one template.
pub(super) fn environment<'a>() -> Environment<'a> {
    let mut env = Environment::empty();
    // As Hugging Face sets them.
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_recursion_limit(100);
    env.set_unknown_method_callback(method);
    add_filters(&mut env);
    add_tests(&mut env);
    env.add_function("namespace", |state: &State, defaults: Option<Value>| {
        let keep = |value: Value| Guard::of(state)?.keep(&Value::UNDEFINED, &value);
        functions::namespace(defaults.map(keep).transpose()?)
    });
    env.add_function("dict", functions::dict);
    env.add_function("range", range);
    env.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{why}")))
    });
    env
}

fn add_filters(env: &mut Environment) {
    env.add_filter("trim", |state: &State, value: Value, chars: Option<String>| {
        let chars: Option<Vec<char>> = chars.map(|chars| chars.chars().collect());
        stripped(chars.as_ref().map_or(0, Vec::len))?;
        text(state, &value, |text| match chars {
            Some(chars) => text.trim_matches(chars.as_slice()).to_owned(),
            None => text.trim().to_owned(),
        })
    });
    env.add_filter("lower", |state: &State, value: Value| text(state, &value, str::to_lowercase));
    env.add_filter("upper", |state: &State, value: Value| text(state, &value, str::to_uppercase));
    env.add_filter("string", |state: &State, value: Value| text(state, &value, str::to_owned));
    env.add_filter("capitalize", |state: &State, value: Value| {
        text(state, &value, |text| {
            let mut rest = text.chars();
            let first = rest.next().into_iter().flat_map(char::to_uppercase);
            first.collect::<String>() + &rest.as_str().to_lowercase()
        })
    });
    env.add_filter("length", |value: Value| filters::length(&value));
    env.add_filter("count", |value: Value| filters::length(&value));
    env.add_filter("first", |value: Value| filters::first(&value));
    env.add_filter("last", |state: &State, value: Value| {
        Guard::of(state)?.check(&value)?;
        filters::last(value)
    });
    env.add_filter("default", filters::default);
    env.add_filter("d", filters::default);
    env.add_filter("int", filters::int);
    env.add_filter("list", |state: &State, value: Value| {
        Guard::of(state)?.check(&value)?;
        filters::list(state, value)
    });
    env.add_filter("items", |value: Value| filters::items(&value));
    env.add_filter("reverse", |state: &State, value: Value| {
        Guard::of(state)?.check(&value)?;
        filters::reverse(&value)
    });
    env.add_filter("tojson", |state: &State, value: Value| {
        Guard::of(state)?.check(&value)?;
        filters::tojson(&value, None, std::iter::empty::<(&str, Value)>().collect())
    });
    env.add_filter("safe", |value: Value| value);
    env.add_filter(
        "selectattr",
        |state: &State,
         value: Value,
         attr: std::borrow::Cow<'_, str>,
         test: Option<std::borrow::Cow<'_, str>>,
         args: Rest<Value>| {
            Guard::of(state)?.check(&value)?;
            filters::selectattr(state, value, attr, test, args)
        },
    );
    env.add_filter(
        "rejectattr",
        |state: &State,
         value: Value,
         attr: std::borrow::Cow<'_, str>,
         test: Option<std::borrow::Cow<'_, str>>,
         args: Rest<Value>| {
            Guard::of(state)?.check(&value)?;
            filters::rejectattr(state, value, attr, test, args)
        },
    );
    env.add_filter("replace", |state: &State, value: Value, from: String, to: String| {
        let guard = Guard::of(state)?;
        guard.check(&value)?;
        let text = value.to_string();
        replaced(&guard, &text, &from, &to)?;
        Ok::<_, Error>(text.replace(&from, &to))
    });
    env.add_filter("join", |state: &State, value: Value, between: Option<String>| {
        let guard = Guard::of(state)?;
        let between = between.unwrap_or_default();
        joined(&guard, &value, between.len())?;
        let parts: Vec<String> = value.try_iter()?.map(|part| part.to_string()).collect();
        Ok::<_, Error>(parts.join(&between))
    });
}

fn add_tests(env: &mut Environment) {
    env.add_test("defined", tests::is_defined);
    env.add_test("undefined", tests::is_undefined);
    env.add_test("none", tests::is_none);
    env.add_test("string", tests::is_string);
    env.add_test("number", tests::is_number);
    env.add_test("integer", tests::is_integer);
    env.add_test("boolean", tests::is_boolean);
    env.add_test("sequence", tests::is_sequence);
    env.add_test("iterable", tests::is_iterable);
    env.add_test("mapping", tests::is_mapping);
    env.add_test("true", tests::is_true);
    env.add_test("false", tests::is_false);
    env.add_test("odd", tests::is_odd);
    env.add_test("even", tests::is_even);
    env.add_test("divisibleby", divisible);
    env.add_test("in", |state: &State, value: &Value, other: &Value| {
        // A list of values may be tested against a long text.
        Guard::of(state)?.step()?;
        tests::is_in(state, value, other)
    });
    env.add_test("startingwith", tests::is_startingwith);
    env.add_test("endingwith", tests::is_endingwith);
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, tests::is_eq);
    }
    for name in ["ne", "!="] {
        env.add_test(name, tests::is_ne);
    }
    env.add_test("lt", tests::is_lt);
    env.add_test("gt", tests::is_gt);
    env.add_test("le", tests::is_le);
    env.add_test("ge", tests::is_ge);
}

/// What `change` makes of a value's text.
fn text(
    state: &State,
    value: &Value,
    change: impl FnOnce(&str) -> String,
) -> Result<String, Error> {
    Guard::of(state)?.check(value)?;
    Ok(match value.as_str() {
        Some(text) => change(text),
        None => change(&value.to_string()),
    })
}

/// Whether so many characters may be looked for at a text's ends.
fn stripped(chars: usize) -> Result<(), Error> {
    if chars > STRIPPED {
        return Err(invalid("the template strips too many characters"));
    }
    Ok(())
}

/// The library's panics where there is no remainder.
fn divisible(value: &Value, other: &Value) -> Result<bool, Error> {
    match (i128::try_from(value.clone()), i128::try_from(other.clone())) {
        (Ok(value), Ok(other)) => value
            .checked_rem(other)
            .map(|rest| rest == 0)
            .ok_or_else(|| invalid("the template divides by 0")),
        _ => Ok(tests::is_divisibleby(value, other)),
    }
}

/// As Python's, but not without an end.
fn range(from: i64, to: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (from, to) = to.map_or((0, from), |to| (from, to));
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("a range cannot take steps of 0"));
    }
    let (distance, size) = if step > 0 {
        (i128::from(to) - i128::from(from), i128::from(step))
    } else {
        (i128::from(from) - i128::from(to), -i128::from(step))
    };
    let count = i64::try_from(((distance + size - 1) / size).max(0)).unwrap_or(i64::MAX);
    if count > RANGE {
        return Err(invalid("the range has too many numbers"));
    }
    Ok((0..count).map(|i| from.saturating_add(i.saturating_mul(step))).collect())
}

/// Whether a text may have its parts replaced.
fn replaced(guard: &Guard, text: &str, from: &str, to: &str) -> Result<(), Error> {
    let times = if from.is_empty() { text.len() + 1 } else { text.len() / from.len() };
    if from.len() >= to.len() {
        return guard.fits(text.len());
    }
    // Counted only where the worst would be too much.
    let grown = |times: usize| text.len().saturating_add(times.saturating_mul(to.len()));
    if guard.fits(grown(times)).is_ok() {
        return Ok(());
    }
    guard.fits(grown(text.matches(from).count()))
}

/// Whether these may be joined.
fn joined(guard: &Guard, parts: &Value, between: usize) -> Result<(), Error> {
    guard.check(parts)?;
    let count = parts.len().unwrap_or(guard.largest);
    guard.fits(count.saturating_mul(between))
}

/// Methods as Python has them.
fn method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if !METHODS.contains(&name) {
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    let guard = Guard::of(state)?;
    guard.check(value)?;
    for arg in args {
        guard.check(arg)?;
    }
    match (name, args) {
        ("replace", [from, to, ..]) => {
            let (text, from, to) = (value.as_str(), from.as_str(), to.as_str());
            let [text, from, to] = [text, from, to].map(Option::unwrap_or_default);
            replaced(&guard, text, from, to)?;
        }
        ("strip" | "lstrip" | "rstrip", [chars, ..]) => {
            stripped(chars.as_str().map_or(0, |chars| chars.chars().count()))?;
        }
        // It is found at the same place for ever.
        ("count", [part, ..]) if value.as_str().is_some() && part.as_str() == Some("") => {
            return Err(invalid("the template counts an empty text"));
        }
        ("join", [parts, ..]) => joined(&guard, parts, value.as_str().unwrap_or_default().len())?,
        _ => {}
    }
    pycompat::unknown_method_callback(state, value, name, args)
}
