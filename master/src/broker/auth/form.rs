//! The form-encoded body of a question of the broker's.

use std::collections::HashMap;

/// Fields of a form. What is not UTF-8 once decoded is left out, as if it had not been sent.
pub struct Form(HashMap<String, String>);

impl Form {
    /// Takes any bytes; of a field that is named twice the last counts.
    pub fn parse(body: &[u8]) -> Self {
        let fields = body.split(|&byte| byte == b'&').filter_map(|pair| {
            let mut halves = pair.splitn(2, |&byte| byte == b'=');
            let (key, value) = (halves.next()?, halves.next().unwrap_or_default());
            Some((decode(key)?, decode(value)?))
        });
        Self(fields.collect())
    }

    /// The field, where it was sent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The field, or nothing.
    pub fn text(&self, key: &str) -> &str {
        self.get(key).unwrap_or_default()
    }
}

fn decode(text: &[u8]) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
                rest = &tail[2..];
                u8::from_str_radix(hex, 16).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded_and_garbage_is_left_out() {
        let form = Form::parse(b"username=w1&password=a%26b+c%3D%C3%A9&empty=&bare&x=%zz&y=%f&z=%ff&%");
        assert_eq!(form.text("username"), "w1");
        assert_eq!(form.get("password"), Some("a&b c=é"));
        assert_eq!(form.get("empty"), Some(""));
        assert_eq!(form.get("bare"), Some(""));
        for broken in ["x", "y", "z", "%"] {
            assert_eq!(form.get(broken), None, "{broken}");
        }
        assert_eq!(Form::parse(&[0xff, 0, b'=', b'&', 0xfe]).text("username"), "");
    }
}
