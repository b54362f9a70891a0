//! The form-encoded body of a request from the broker.

use std::collections::HashMap;

/// The fields of a form. A field that is not UTF-8 is left out.
pub struct Form(HashMap<String, String>);

impl Form {
    /// Accepts any bytes. If a field is repeated, the last one counts.
    pub fn parse(body: &[u8]) -> Self {
        // Invalid bytes become a replacement character, which no valid name, password or address contains.
        let broken = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
        let fields = form_urlencoded::parse(body).filter(|(key, value)| !broken(key) && !broken(value));
        Self(fields.map(|(key, value)| (key.into_owned(), value.into_owned())).collect())
    }

    /// The field, if it was sent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The field, or an empty text.
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
        // A % without a valid escape is an ordinary character, as on the web; a field that is not UTF-8 is left out.
        assert_eq!((form.text("x"), form.text("y"), form.get("%")), ("%zz", "%f", Some("")));
        assert_eq!(form.get("z"), None);
        assert_eq!(Form::parse(&[0xff, 0, b'=', b'&', 0xfe]).text("username"), "");
    }
}
