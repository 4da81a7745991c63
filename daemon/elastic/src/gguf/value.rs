//! Values in a GGUF header, and the reader that goes through its bytes.

/// A value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any of the unsigned integers, and signed ones that are not negative.
    Unsigned(u64),
    /// A negative integer.
    Negative(i64),
    /// A float of either width.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text; what is no UTF-8 is refused.
    String(&'a str),
    /// A list.
    Array(Array<'a>),
}

/// A list of values of one type, not yet taken apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    code: u32,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    /// A number that is not negative.
    #[must_use]
    pub fn as_u64(self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(value),
            _ => None,
        }
    }

    /// Any number.
    #[must_use]
    pub fn as_f64(self) -> Option<f64> {
        match self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Negative(value) => Some(value as f64),
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    /// A truth value.
    #[must_use]
    pub fn as_bool(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Text.
    #[must_use]
    pub fn as_str(self) -> Option<&'a str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    /// A list.
    #[must_use]
    pub fn as_array(self) -> Option<Array<'a>> {
        match self {
            Self::Array(value) => Some(value),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Numbers and truth values, in order; nothing of a list of strings.
    pub fn scalars(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (code, mut reader) = (self.code, Reader::new(self.bytes));
        let len = if code == STRING { 0 } else { self.len };
        (0..len).map_while(move |_| reader.scalar(code))
    }

    /// The bytes of each string, in order, UTF-8 or not; nothing of a list of numbers.
    pub fn strings(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        let len = if self.code == STRING { self.len } else { 0 };
        (0..len).map_while(move |_| reader.byte_string())
    }
}

/// Values of a list, 64 times those of the largest vocabulary. A file of holes may claim any number, and they
/// are gone through one by one.
const MAX_VALUES: usize = 1 << 24;

// Types of values in the file.
const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

/// Goes through the bytes of a header; None where they end or make no sense.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let bytes = self.bytes.get(self.position..)?.get(..len)?;
        self.position += len;
        Some(bytes)
    }

    fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.fixed().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.fixed().map(u64::from_le_bytes)
    }

    fn byte_string(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u64()?).ok()?;
        self.take(len)
    }

    pub(super) fn string(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.byte_string()?).ok()
    }

    pub(super) fn value(&mut self) -> Option<Value<'a>> {
        match self.u32()? {
            STRING => self.string().map(Value::String),
            ARRAY => self.array().map(Value::Array),
            code => self.scalar(code),
        }
    }

    fn array(&mut self) -> Option<Array<'a>> {
        let code = self.u32()?;
        let len = usize::try_from(self.u64()?).ok().filter(|len| *len <= MAX_VALUES)?;
        let start = self.position;
        match width(code) {
            Some(width) => {
                self.take(len.checked_mul(width)?)?;
            }
            None if code == STRING => {
                for _ in 0..len {
                    self.byte_string()?;
                }
            }
            // No key that is used here nests lists.
            None => return None,
        }
        let bytes = self.bytes.get(start..self.position)?;
        Some(Array { code, len, bytes })
    }

    fn scalar(&mut self, code: u32) -> Option<Value<'a>> {
        let signed =
            |value: i64| u64::try_from(value).map_or(Value::Negative(value), Value::Unsigned);
        Some(match code {
            U8 => Value::Unsigned(u8::from_le_bytes(self.fixed()?).into()),
            U16 => Value::Unsigned(u16::from_le_bytes(self.fixed()?).into()),
            U32 => Value::Unsigned(self.u32()?.into()),
            U64 => Value::Unsigned(self.u64()?),
            I8 => signed(i8::from_le_bytes(self.fixed()?).into()),
            I16 => signed(i16::from_le_bytes(self.fixed()?).into()),
            I32 => signed(i32::from_le_bytes(self.fixed()?).into()),
            I64 => signed(i64::from_le_bytes(self.fixed()?)),
            F32 => Value::Float(f32::from_le_bytes(self.fixed()?).into()),
            F64 => Value::Float(f64::from_le_bytes(self.fixed()?)),
            BOOL => Value::Bool(u8::from_le_bytes(self.fixed()?) != 0),
            _ => return None,
        })
    }
}

/// Bytes of a value of a fixed length.
fn width(code: u32) -> Option<usize> {
    match code {
        U8 | I8 | BOOL => Some(1),
        U16 | I16 => Some(2),
        U32 | I32 | F32 => Some(4),
        U64 | I64 | F64 => Some(8),
        _ => None,
    }
}

/// The bytes of a value, with the number of its type in front, as [`Reader::value`] reads them.
pub(super) fn encode(value: &super::Entry, out: &mut Vec<u8>) {
    use super::Entry;
    let string = |text: &[u8], out: &mut Vec<u8>| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text);
    };
    let list = |code: u32, len: usize, out: &mut Vec<u8>| {
        out.extend(ARRAY.to_le_bytes());
        out.extend(code.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Entry::U32(value) => {
            out.extend(U32.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        Entry::F32(value) => {
            out.extend(F32.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        Entry::Bool(value) => {
            out.extend(BOOL.to_le_bytes());
            out.push(u8::from(*value));
        }
        Entry::String(text) => {
            out.extend(STRING.to_le_bytes());
            string(text.as_bytes(), out);
        }
        Entry::U32s(values) => {
            list(U32, values.len(), out);
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Entry::I32s(values) => {
            list(I32, values.len(), out);
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Entry::F32s(values) => {
            list(F32, values.len(), out);
            out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        Entry::Bools(values) => {
            list(BOOL, values.len(), out);
            out.extend(values.iter().map(|value| u8::from(*value)));
        }
        Entry::Strings(values) => {
            list(STRING, values.len(), out);
            for text in values {
                string(text, out);
            }
        }
    }
}
