//! Alternatives: the types, zones and markets that a section allows. They are tried one at a time.

use crate::core::event::StartError;
use std::collections::BTreeSet;

/// The alternative that is tried.
pub struct Chosen<'a, T> {
    /// Its number, from 0.
    pub number: u32,
    /// Its name, for people and for the set of those that rest.
    pub name: String,
    /// Itself.
    pub alternative: &'a T,
    /// Whether there is another one after it.
    pub more: bool,
}

/// The first alternative from `number` on that does not rest.
///
/// # Errors
/// [`StartError::Capacity`] if there is none.
pub fn choose<'a, T>(
    all: &'a [T],
    number: u32,
    resting: &BTreeSet<String>,
    name: impl Fn(&T) -> String,
) -> Result<Chosen<'a, T>, StartError> {
    let mut rest = Vec::new();
    for (number, alternative) in (0_u32..).zip(all).skip(usize::try_from(number).unwrap_or(usize::MAX)) {
        let name = name(alternative);
        if !resting.contains(&name) {
            let more = usize::try_from(number).is_ok_and(|number| number + 1 < all.len());
            return Ok(Chosen { number, name, alternative, more });
        }
        rest.push(name);
    }
    Err(StartError::Capacity(match rest.as_slice() {
        [] => "everything that the worker's section allows has been tried".to_owned(),
        rest => format!("there was no capacity a short time ago, and nothing else is left to try: {}", rest.join("; ")),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rests_is_passed_over() {
        let all = ["a", "b", "c"];
        let chosen = |number, resting: &[&str]| {
            let resting = resting.iter().map(|one| (*one).to_owned()).collect();
            choose(&all, number, &resting, |one| (*one).to_owned()).map(|c| (c.number, c.name, c.more))
        };
        let is = |number, name: &str, more| Ok((number, name.to_owned(), more));
        assert_eq!(chosen(0, &[]), is(0, "a", true));
        assert_eq!(chosen(0, &["a"]), is(1, "b", true));
        assert_eq!(chosen(1, &["a"]), is(1, "b", true));
        assert_eq!(chosen(0, &["a", "b"]), is(2, "c", false));
        let Err(StartError::Capacity(why)) = chosen(1, &["b", "c", "x"]) else { panic!("none is left") };
        assert!(why.contains("b; c"), "{why}");
        assert!(matches!(chosen(3, &[]), Err(StartError::Capacity(_))));
        assert!(matches!(chosen(u32::MAX, &[]), Err(StartError::Capacity(_))));
    }
}
