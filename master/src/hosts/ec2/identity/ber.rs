//! Reads ASN.1 in BER. DER is the strict form of BER. AWS signs in BER with indefinite lengths, which readers of DER
//! refuse. This module can write what it has read as DER, which the verification of signatures needs.

/// Elements within elements, at most.
const DEPTH: usize = 24;

/// `SEQUENCE`.
pub const SEQUENCE: u8 = 0x30;
/// `SET`.
pub const SET: u8 = 0x31;
/// `OCTET STRING`.
pub const OCTETS: u8 = 0x04;
/// `BIT STRING`.
pub const BITS: u8 = 0x03;
/// `OBJECT IDENTIFIER`.
pub const OID: u8 = 0x06;
/// In the tag of what holds elements instead of bytes.
const CONSTRUCTED: u8 = 0x20;

/// One element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Element {
    /// Class, form and number; numbers above 30 are not read.
    pub tag: u8,
    /// What is in it.
    pub content: Content,
}

/// What an element holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Bytes.
    Bytes(Vec<u8>),
    /// Further elements.
    Elements(Vec<Element>),
}

impl Element {
    /// The one element that `bytes` are.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (element, rest) = next(bytes, 0)?;
        rest.is_empty().then_some(element)
    }

    /// The elements of one with this tag.
    pub fn elements(&self, tag: u8) -> Option<&[Self]> {
        match &self.content {
            Content::Elements(elements) if self.tag == tag => Some(elements),
            Content::Elements(_) | Content::Bytes(_) => None,
        }
    }

    /// The bytes of one with this tag. Those of a string may stand in pieces.
    pub fn bytes(&self, tag: u8) -> Option<Vec<u8>> {
        match &self.content {
            Content::Bytes(bytes) if self.tag == tag => Some(bytes.clone()),
            Content::Elements(pieces) if self.tag == tag | CONSTRUCTED => {
                let mut all = Vec::new();
                for piece in pieces {
                    all.extend(piece.bytes(tag)?);
                }
                Some(all)
            }
            Content::Bytes(_) | Content::Elements(_) => None,
        }
    }

    /// In DER. Sets keep their order.
    pub fn der(&self) -> Vec<u8> {
        let content = match &self.content {
            Content::Bytes(bytes) => bytes.clone(),
            Content::Elements(elements) => elements.iter().flat_map(Self::der).collect(),
        };
        let mut out = vec![self.tag];
        let length = content.len();
        if length < 0x80 {
            out.push(length.to_le_bytes()[0]);
        } else {
            let digits: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | digits.len().to_le_bytes()[0]);
            out.extend(digits);
        }
        out.extend(content);
        out
    }
}

fn next(bytes: &[u8], depth: usize) -> Option<(Element, &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    if tag & 0x1f == 0x1f || depth > DEPTH {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let constructed = tag & CONSTRUCTED != 0;
    if first == 0x80 {
        // Left open: it ends with two zeros.
        if !constructed {
            return None;
        }
        let mut elements = Vec::new();
        let mut rest = rest;
        loop {
            if let Some(after) = rest.strip_prefix(&[0, 0]) {
                return Some((Element { tag, content: Content::Elements(elements) }, after));
            }
            let (element, after) = next(rest, depth + 1)?;
            elements.push(element);
            rest = after;
        }
    }
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            if digits.len() > 4 {
                return None;
            }
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
    };
    let (mut inside, rest) = rest.split_at_checked(length)?;
    if !constructed {
        return Some((Element { tag, content: Content::Bytes(inside.to_vec()) }, rest));
    }
    let mut elements = Vec::new();
    while !inside.is_empty() {
        let (element, after) = next(inside, depth + 1)?;
        elements.push(element);
        inside = after;
    }
    Some((Element { tag, content: Content::Elements(elements) }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_length_is_read_and_a_strict_one_written() {
        // SEQUENCE { OCTET STRING in two pieces, INTEGER 5 }, all left open.
        let ber = [0x30, 0x80, 0x24, 0x80, 4, 1, b'a', 4, 2, b'b', b'c', 0, 0, 2, 1, 5, 0, 0];
        let element = Element::read(&ber).unwrap();
        let inside = element.elements(SEQUENCE).unwrap();
        assert_eq!(inside[0].bytes(OCTETS).unwrap(), b"abc");
        assert_eq!(inside[1].der(), [2, 1, 5]);
        assert_eq!(Element::read(&element.der()).unwrap(), element);
        let long = Element { tag: OCTETS, content: Content::Bytes(vec![7; 300]) };
        assert_eq!(long.der()[..4], [4, 0x82, 1, 44]);
        assert_eq!(Element::read(&long.der()), Some(long));
    }

    #[test]
    fn nonsense_is_none() {
        let deep = [[0x30, 0x80].repeat(40), vec![0; 80]].concat();
        let bad: [&[u8]; 8] = [
            &[],
            &[0x30],
            &[0x30, 0x80],
            &[0x04, 0x80, 0, 0],
            &[4, 5, 1],
            &[0x1f, 1, 1],
            &[4, 0x85, 1, 1, 1, 1, 1],
            &deep,
        ];
        for bytes in bad {
            assert_eq!(Element::read(bytes), None, "{bytes:?}");
        }
        assert_eq!(Element::read(&[2, 1, 5, 0]), None, "something is behind it");
    }
}
