//! Reading JSON into types that derive [`Deserialize`].
//!
//! [`from_str`] replaces `serde_json::from_str` for messages between objects and for stored
//! records. `serde_json` compiles its parser again for each type and each of its fields, and
//! reads a struct from an array too. `Reader` compiles the parser once, and reads a struct
//! from an object alone, so the Worker is smaller. `serde_json` reads all scalars and checks
//! the values that are skipped, so both accept the same JSON in all other cases.
//!
//! Types with `#[serde(untagged)]`, `#[serde(tag)]` or `#[serde(flatten)]` need
//! `serde_json::from_str`.

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde_json::value::RawValue;
use serde_json::{Error, Result};
use std::borrow::Cow;

/// Reads a value from JSON.
///
/// # Errors
///
/// Fails if `json` is not valid, or not the JSON of a `T`.
pub fn from_str<'de, T: Deserialize<'de>>(json: &'de str) -> Result<T> {
    let mut reader = Reader { rest: json };
    let value = T::deserialize(&mut reader)?;
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(Error::custom("trailing characters")),
    }
}

/// The JSON text that is not read yet.
struct Reader<'de> {
    rest: &'de str,
}

impl<'de> Reader<'de> {
    /// Skips white space and returns the next byte.
    fn peek(&mut self) -> Option<u8> {
        while let Some(next) = self.rest.bytes().next() {
            if !matches!(next, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(next);
            }
            self.rest = &self.rest[1..];
        }
        None
    }

    /// Skips `byte`, which is ASCII. Returns `false` if another byte is next.
    fn skip(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        match self.skip(byte) {
            true => Ok(()),
            false => Err(Error::custom(format_args!("expected `{}`", byte as char))),
        }
    }

    /// Reads a number, a boolean or `null` as text. Does not check it.
    fn token(&mut self) -> &'de str {
        self.peek();
        let is_end = |byte: u8| matches!(byte, b',' | b']' | b'}' | b' ' | b'\n' | b'\r' | b'\t');
        let end = self.rest.bytes().position(is_end);
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        token
    }

    /// Reads a value of any type as text.
    fn raw(&mut self) -> Result<&'de str> {
        self.peek();
        let mut deserializer = serde_json::Deserializer::from_str(self.rest);
        let value = <&RawValue>::deserialize(&mut deserializer)?.get();
        self.rest = &self.rest[value.len()..];
        Ok(value)
    }

    /// Reads a string.
    fn string(&mut self) -> Result<Cow<'de, str>> {
        if self.peek() == Some(b'"') {
            let text = &self.rest[1..];
            let end = text
                .bytes()
                .position(|b| b < b' ' || b == b'"' || b == b'\\');
            if let Some(end) = end
                && text.as_bytes()[end] == b'"'
            {
                self.rest = &text[end + 1..];
                return Ok(Cow::Borrowed(&text[..end]));
            }
        }
        serde_json::from_str(self.raw()?).map(Cow::Owned)
    }

    /// Moves to the next item of an array or an object that ends with `end`. Returns `false`
    /// at the end.
    fn next(&mut self, is_first: &mut bool, end: u8) -> Result<bool> {
        if self.peek() == Some(end) {
            return Ok(false);
        }
        if !std::mem::take(is_first) {
            self.expect(b',')?;
        }
        Ok(true)
    }
}

/// Methods that leave a scalar to `serde_json`.
macro_rules! scalars {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            let mut deserializer = serde_json::Deserializer::from_str(self.token());
            let value = deserializer.$method(visitor)?;
            deserializer.end()?;
            Ok(value)
        })*
    };
}

/// Methods that leave a value of any type to `serde_json`.
macro_rules! values {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            serde_json::Deserializer::from_str(self.raw()?).$method(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    scalars! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32
        deserialize_f64 deserialize_unit
    }

    values! {
        deserialize_any deserialize_char deserialize_bytes deserialize_byte_buf
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.string()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_str(&self.string()?)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.raw()?;
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        match self.peek() {
            Some(b'n') => {
                <()>::deserialize(self)?;
                visitor.visit_none()
            }
            _ => visitor.visit_some(self),
        }
    }

    /// Also reads a [`RawValue`], which only `serde_json` supports.
    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        serde_json::Deserializer::from_str(self.raw()?).deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.expect(b'[')?;
        let value = visitor.visit_seq(Items::new(self))?;
        self.expect(b']')?;
        Ok(value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _length: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.expect(b'{')?;
        let value = visitor.visit_map(Items::new(self))?;
        self.expect(b'}')?;
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let has_value = self.skip(b'{');
        let value = visitor.visit_enum(Variant {
            reader: self,
            has_value,
        })?;
        if has_value {
            self.expect(b'}')?;
        }
        Ok(value)
    }
}

/// The items of an array or an object.
struct Items<'a, 'de> {
    reader: &'a mut Reader<'de>,
    is_first: bool,
}

impl<'a, 'de> Items<'a, 'de> {
    fn new(reader: &'a mut Reader<'de>) -> Self {
        Items {
            reader,
            is_first: true,
        }
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        match self.reader.next(&mut self.is_first, b']')? {
            true => seed.deserialize(&mut *self.reader).map(Some),
            false => Ok(None),
        }
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        match self.reader.next(&mut self.is_first, b'}')? {
            true => seed.deserialize(&mut *self.reader).map(Some),
            false => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        self.reader.expect(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}

/// A variant of an enum: `"Variant"`, or `{"Variant":value}` whose `{` is read.
struct Variant<'a, 'de> {
    reader: &'a mut Reader<'de>,
    has_value: bool,
}

impl<'a, 'de> Variant<'a, 'de> {
    fn value(self) -> Result<&'a mut Reader<'de>> {
        match self.has_value {
            true => Ok(self.reader),
            false => Err(Error::custom("expected a variant with a value")),
        }
    }
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self)> {
        let name = seed.deserialize(&mut *self.reader)?;
        if self.has_value {
            self.reader.expect(b':')?;
        }
        Ok((name, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<()> {
        match self.has_value {
            true => <()>::deserialize(self.reader),
            false => Ok(()),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self.value()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value> {
        self.value()?.deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.value()?.deserialize_map(visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Record<'a> {
        text: String,
        #[serde(borrow)]
        borrowed: Cow<'a, str>,
        number: u64,
        optional: Option<i32>,
        #[serde(default)]
        list: Vec<(String, u8)>,
        #[serde(default)]
        kind: Kind,
        #[serde(default)]
        any: Option<serde_json::Value>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    enum Kind {
        #[default]
        Unit,
        Newtype(bool),
        Tuple(u8, f64),
        Struct {
            at: u64,
        },
    }

    fn assert_read_like_serde_json(json: &str) {
        let read = from_str::<Record<'_>>(json);
        let expected = serde_json::from_str::<Record<'_>>(json);
        assert_eq!(read.ok(), expected.ok(), "{json}");
    }

    const RECORD: &str = r#"{"text":"a","borrowed":"b","number":10,"optional":-1,"other":[{}],
        "list":[["c",1],["d",2]],"kind":{"Struct":{"at":3}},"any":{"e":[null,true,"\u00fc"]}}"#;

    proptest! {
        #[test]
        fn changed_json_is_read_as_by_serde_json(
            at in 0..RECORD.len(),
            removed in 0..6usize,
            inserted in r#"[\[\]{},:" \nu\\0-9.-]{0,3}"#,
        ) {
            let mut json = RECORD.to_owned();
            json.replace_range(at..RECORD.len().min(at + removed), &inserted);
            assert_read_like_serde_json(&json);
        }
    }

    #[test]
    fn every_form_of_a_field_is_read_as_by_serde_json() {
        for (name, values) in [
            (
                "list",
                vec![
                    "[]",
                    "[[\"a\",1]]",
                    "[[\"a\",1],]",
                    "[[\"a\"]]",
                    "[[\"a\",1,2]]",
                    "[[\"a\",256]]",
                ],
            ),
            (
                "kind",
                vec![
                    "\"Unit\"",
                    "{\"Unit\":null}",
                    "{\"Unit\":1}",
                    "\"Newtype\"",
                    "{\"Newtype\":true}",
                    "{\"Tuple\":[1,2]}",
                    "{\"Tuple\":[1]}",
                    "{\"Struct\":{\"at\":1}}",
                    "{\"Struct\":{}}",
                    "{\"Newtype\":true,\"Unit\":null}",
                    "{}",
                    "\"Other\"",
                    "7",
                ],
            ),
            ("optional", vec!["null", "-1", "1.0", "nul", "4294967296"]),
            ("any", vec!["{\"a\":[1,\"x\"]}", "null", "[}"]),
            ("other", vec!["{\"a\":[1,\"x\"]}", "null", "[}", "\"\\q\""]),
        ] {
            for value in values {
                let json =
                    format!(r#"{{"text":"t","borrowed":"b\n","number":1,"{name}":{value}}}"#);
                assert_read_like_serde_json(&json);
            }
        }
        for json in [
            "",
            " ",
            "{",
            "{}",
            "null",
            "7",
            "{\"text\":\"t\"}",
            "{\"text\" \"t\"}",
        ] {
            assert_read_like_serde_json(json);
        }
    }

    #[test]
    fn a_struct_is_not_read_from_an_array() {
        assert_eq!(from_str::<(u8, u8)>(" [1, 2] ").ok(), Some((1, 2)));
        assert!(from_str::<Record<'_>>(r#"["t","b",1,null]"#).is_err());
    }

    #[test]
    fn raw_values_keep_their_text() {
        let values: Vec<&RawValue> = from_str(r#"[ {"a": 1.50} , "x"]"#).expect("two values");
        let texts: Vec<&str> = values.iter().map(|value| value.get()).collect();
        assert_eq!(texts, [r#"{"a": 1.50}"#, r#""x""#]);
    }
}
