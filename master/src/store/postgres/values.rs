//! Values of the ledger as PostgreSQL has them. Its texts have no NUL character, and those in an index a largest length.

use crate::store::StoreError;
use crate::store::engine::{Row, Value};
use bytes::BytesMut;
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::error::Error;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

/// Written before what stands for a NUL character, and before what stands for itself. Nobody uses it for anything else:
/// it is the first character for private use.
const ESCAPE: char = '\u{e000}';
/// Longest text in an index, bytes. PostgreSQL takes about 2,700 in all columns of an index.
const LONGEST_KEY: usize = 600;
/// What is kept of a longer one, bytes.
const KEPT: usize = 400;

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, to: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(number) if *kind == Type::INT4 => i32::try_from(*number)?.to_sql(kind, to),
            Self::Int(number) => number.to_sql(kind, to),
            Self::Bool(flag) => flag.to_sql(kind, to),
            Self::Text(text) => escaped(text).to_sql(kind, to),
            Self::Key(text) => short(text).to_sql(kind, to),
            Self::Keys(texts) => texts.iter().map(|text| short(text)).collect::<Vec<_>>().to_sql(kind, to),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT4 | Type::INT8 | Type::BOOL | Type::TEXT | Type::TEXT_ARRAY)
    }

    to_sql_checked!();
}

/// The row of an answer.
pub(super) fn row(row: &tokio_postgres::Row) -> Result<Row, StoreError> {
    let values = row.columns().iter().enumerate().map(|(at, column)| {
        let read = match *column.type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(at).map(Value::from),
            Type::INT4 => row.try_get::<_, Option<i32>>(at).map(|number| number.map(i64::from).into()),
            Type::BOOL => row.try_get::<_, Option<bool>>(at).map(Value::from),
            Type::TEXT => {
                row.try_get::<_, Option<&str>>(at).map(|text| text.map(|text| unescaped(text).into_owned()).into())
            }
            _ => return Err(StoreError::Column(at)),
        };
        read.map_err(|_| StoreError::Column(at))
    });
    Ok(Row::new(values.collect::<Result<_, _>>()?))
}

fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return text.into();
    }
    let mut all = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => all.extend([ESCAPE, '0']),
            ESCAPE => all.extend([ESCAPE, 'e']),
            other => all.push(other),
        }
    }
    all.into()
}

fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPE) {
        return text.into();
    }
    let mut all = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            ESCAPE => all.push(if characters.next() == Some('0') { '\0' } else { ESCAPE }),
            other => all.push(other),
        }
    }
    all.into()
}

/// The text, or its beginning and its hash.
fn short(text: &str) -> Cow<'_, str> {
    let text = escaped(text);
    if text.len() <= LONGEST_KEY {
        return text;
    }
    let mut kept = KEPT;
    while !text.is_char_boundary(kept) {
        kept -= 1;
    }
    format!("{}...{}", &text[..kept], hex::encode(Sha256::digest(text.as_bytes()))).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_comes_back_as_it_was() {
        for text in ["", "a", "\0", "a\0b\0", "\u{e000}", "\u{e000}0\0e", "ä\u{e000}\u{e000}"] {
            let written = escaped(text).into_owned();
            assert!(!written.contains('\0'), "{written:?}");
            assert_eq!(unescaped(&written), text);
        }
    }

    #[test]
    fn a_long_key_is_short_and_still_its_own() {
        let long = "ä".repeat(400);
        assert_eq!(short("short"), "short");
        assert!(short(&long).len() < LONGEST_KEY && short(&long).starts_with('ä'));
        assert_ne!(short(&long), short(&format!("{long}x")));
        assert_eq!(short(&long), short(&long.clone()));
    }
}
