//! From a parsed TOML value into a struct, and the place of what does not fit: `document.rs` names the fault by it.
//!
//! Written for that alone. The libraries for it, toml's `ValueDeserializer` in `serde_path_to_error`, are made for any
//! format and take the value apart as they go: two layers of generic code for each of the configuration's types, 0.5 MB of
//! the binary. Here is one, which only looks, and asks what a value is outside of the generic code.
//!
//! Limits: what the configuration's types need. Texts, numbers, booleans, lists, tables, and enums without data; a date is
//! a value that fits nowhere.

use std::fmt::Display;
use std::ops::Range;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use toml::Spanned;
use toml::de::{DeString, DeValue};

/// What does not fit, and where.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Misfit {
    /// In the words of `serde::de::Error`.
    pub(crate) message: String,
    /// Keys and indices from the value that was read, as in `point[0].address`; empty for the value itself.
    pub(crate) path: String,
    /// Where that is in the text: of an unknown key the key, else the value.
    pub(crate) span: Option<Range<usize>>,
}

impl Error for Misfit {
    fn custom<T: Display>(message: T) -> Self {
        Self { message: message.to_string(), path: String::new(), span: None }
    }
}

impl Misfit {
    /// At that place, unless it is told already: the innermost is meant.
    #[cold]
    fn at(mut self, path: &Path<'_>, span: Range<usize>) -> Self {
        if self.span.is_none() {
            self.span = Some(span);
            path.write(&mut self.path);
        }
        self
    }
}

/// The way to a value.
enum Path<'p> {
    Start,
    Key(&'p Path<'p>, &'p str),
    Index(&'p Path<'p>, usize),
}

impl Path<'_> {
    fn write(&self, out: &mut String) {
        match self {
            Self::Start => {}
            Self::Key(around, key) => {
                around.write(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Self::Index(around, at) => {
                around.write(out);
                out.push_str(&format!("[{at}]"));
            }
        }
    }
}

/// Reads the value as a `T`.
pub(crate) fn read<T: DeserializeOwned>(value: &Spanned<DeValue<'_>>) -> Result<T, Misfit> {
    T::deserialize(Reader { value, path: &Path::Start }).map_err(|misfit| misfit.at(&Path::Start, value.span()))
}

struct Reader<'v, 'p> {
    value: &'v Spanned<DeValue<'v>>,
    path: &'p Path<'p>,
}

/// A value as a visitor takes it.
enum Plain<'v, 'p> {
    Text(&'v str),
    Signed(i64),
    Unsigned(u64),
    Real(f64),
    Truth(bool),
    List(Elements<'v, 'p>),
    Table(Entries<'v, 'p>),
    Other(String),
}

impl Plain<'_, '_> {
    #[cold]
    fn misfit(&self, wanted: &dyn Expected) -> Misfit {
        let found = match self {
            Self::Text(text) => Unexpected::Str(text),
            Self::Signed(number) => Unexpected::Signed(*number),
            Self::Unsigned(number) => Unexpected::Unsigned(*number),
            Self::Real(number) => Unexpected::Float(*number),
            Self::Truth(truth) => Unexpected::Bool(*truth),
            Self::List(_) => Unexpected::Seq,
            Self::Table(_) => Unexpected::Map,
            Self::Other(what) => Unexpected::Other(what),
        };
        Misfit::invalid_type(found, wanted)
    }
}

impl<'v, 'p> Reader<'v, 'p> {
    #[inline(never)]
    fn plain(self) -> Plain<'v, 'p> {
        match self.value.get_ref() {
            DeValue::String(text) => Plain::Text(text),
            DeValue::Integer(written) => {
                let (digits, radix) = (written.as_str(), written.radix());
                match (i64::from_str_radix(digits, radix), u64::from_str_radix(digits, radix)) {
                    (Ok(number), _) => Plain::Signed(number),
                    (Err(_), Ok(number)) => Plain::Unsigned(number),
                    (Err(_), Err(_)) => Plain::Other(format!("integer `{digits}`")),
                }
            }
            DeValue::Float(written) => match written.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() || written.as_str().contains("inf") || number.is_nan() => {
                    Plain::Real(number)
                }
                _ => Plain::Other(format!("floating point `{}`", written.as_str())),
            },
            DeValue::Boolean(truth) => Plain::Truth(*truth),
            DeValue::Datetime(_) => Plain::Other("a date or time".into()),
            DeValue::Array(list) => Plain::List(Elements { list, next: 0, path: self.path }),
            DeValue::Table(table) => Plain::Table(Entries { entries: table.iter(), value: None, path: self.path }),
        }
    }
}

/// Methods that take these kinds of value, and no other: a visitor's ways for others are not even built.
macro_rules! take {
    (@ $method:ident { $($kind:ident by $visit:ident),+ }) => {
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
            match self.plain() {
                $(Plain::$kind(value) => visitor.$visit(value),)+
                other => Err(other.misfit(&visitor)),
            }
        }
    };
    ($($method:ident)+: $ways:tt) => { $(take! { @ $method $ways })+ };
}

impl<'de> Deserializer<'de> for Reader<'_, '_> {
    type Error = Misfit;

    take! { deserialize_bool: { Truth by visit_bool } }
    take! {
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64: { Signed by visit_i64, Unsigned by visit_u64 }
    }
    take! { deserialize_f32 deserialize_f64: { Signed by visit_i64, Unsigned by visit_u64, Real by visit_f64 } }
    take! { deserialize_char deserialize_str deserialize_string: { Text by visit_str } }
    take! { deserialize_seq: { List by visit_seq } }
    take! { deserialize_map: { Table by visit_map } }
    take! {
        deserialize_any: {
            Text by visit_str, Signed by visit_i64, Unsigned by visit_u64, Real by visit_f64, Truth by visit_bool,
            List by visit_seq, Table by visit_map
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        self.deserialize_map(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self.value.get_ref() {
            DeValue::String(name) => visitor.visit_enum(Choice(name)),
            _ => Err(Misfit::custom("wanted string or table")),
        }
    }

    serde::forward_to_deserialize_any! { bytes byte_buf unit ignored_any unit_struct tuple_struct tuple identifier }
}

struct Elements<'v, 'p> {
    list: &'v [Spanned<DeValue<'v>>],
    next: usize,
    path: &'p Path<'p>,
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = Misfit;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Misfit> {
        let Some(value) = self.list.get(self.next) else { return Ok(None) };
        let path = Path::Index(self.path, self.next);
        self.next += 1;
        // What is said of a value once it was read, as by `try_from`, is said here too.
        seed.deserialize(Reader { value, path: &path }).map(Some).map_err(|misfit| misfit.at(&path, value.span()))
    }
}

type Entry<'v> = (&'v Spanned<DeString<'v>>, &'v Spanned<DeValue<'v>>);

struct Entries<'v, 'p> {
    entries: toml::map::Iter<'v, Spanned<DeString<'v>>, Spanned<DeValue<'v>>>,
    value: Option<Entry<'v>>,
    path: &'p Path<'p>,
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Misfit;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Misfit> {
        self.value = self.entries.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let name: &str = key.get_ref();
        let name = IntoDeserializer::<Misfit>::into_deserializer(name);
        seed.deserialize(name).map(Some).map_err(|misfit| misfit.at(&Path::Key(self.path, key.get_ref()), key.span()))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Misfit> {
        let (key, value) = self.value.take().ok_or_else(|| Misfit::custom("a value was asked for before its key"))?;
        let path = Path::Key(self.path, key.get_ref());
        seed.deserialize(Reader { value, path: &path }).map_err(|misfit| misfit.at(&path, value.span()))
    }
}

/// An enum without data, by its name.
struct Choice<'v>(&'v str);

impl<'de> EnumAccess<'de> for Choice<'_> {
    type Error = Misfit;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Misfit> {
        let name = IntoDeserializer::<Misfit>::into_deserializer(self.0);
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'_> {
    type Error = Misfit;

    fn unit_variant(self) -> Result<(), Misfit> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _: S) -> Result<S::Value, Misfit> {
        Err(Misfit::invalid_type(Unexpected::UnitVariant, &"a choice with a value"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Misfit> {
        Err(Misfit::invalid_type(Unexpected::UnitVariant, &"a choice with values"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Misfit> {
        Err(Misfit::invalid_type(Unexpected::UnitVariant, &"a choice with a table"))
    }
}
