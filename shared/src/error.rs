//! Prints an error with all of its causes.

use std::error::Error;
use std::fmt;

/// Prints an error and its causes on one line, each after a colon: `cannot read a.toml: permission denied`.
///
/// An error's own text must therefore not repeat that of its source.
#[derive(Clone, Copy, Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    #[test]
    fn every_cause_is_printed() {
        let alone = Layer("the file is too long", None);
        assert_eq!(Chain(&alone).to_string(), "the file is too long");
        let middle = Layer("cannot read a.toml", Some(Box::new(Layer("permission denied", None))));
        let outer = Layer("cannot start", Some(Box::new(middle)));
        assert_eq!(Chain(&outer).to_string(), "cannot start: cannot read a.toml: permission denied");
    }
}
