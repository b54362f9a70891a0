//! The form-encoded body of a question of the broker's.

use std::collections::HashMap;

/// Fields of a form. What is not UTF-8 once decoded is left out, as if it had not been sent.
pub struct Form(HashMap<String, String>);

impl Form {
    /// Takes any bytes; of a field that is named twice the last counts.
    pub fn parse(body: &[u8]) -> Self {
        // What cannot be decoded becomes a replacement character, which no name, password or address of ours has.
        let broken = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
        let fields = form_urlencoded::parse(body).filter(|(key, value)| !broken(key) && !broken(value));
        Self(fields.map(|(key, value)| (key.into_owned(), value.into_owned())).collect())
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
        // A % that begins no escape is itself, as everywhere on the web; what is not UTF-8 is left out.
        assert_eq!((form.text("x"), form.text("y"), form.get("%")), ("%zz", "%f", Some("")));
        assert_eq!(form.get("z"), None);
        assert_eq!(Form::parse(&[0xff, 0, b'=', b'&', 0xfe]).text("username"), "");
    }
}
