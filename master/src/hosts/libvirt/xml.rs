//! Helpers for an XML tree, for reading and changing a domain's description.

use xmltree::{Element, EmitterConfig, XMLNode};

/// The root element of a text.
///
/// # Errors
/// If it is not well formed.
pub fn parse(text: &str) -> Result<Element, String> {
    Element::parse(text.as_bytes()).map_err(|error| error.to_string())
}

/// The tree as text, without a declaration.
pub fn to_text(element: &Element) -> String {
    let mut bytes = Vec::new();
    let config = EmitterConfig::new().write_document_declaration(false);
    // Writing to memory cannot fail, and what was parsed or built here can be written.
    match element.write_with_config(&mut bytes, config) {
        Ok(()) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("<unwritable>{error}</unwritable>"),
    }
}

/// An element with attributes.
pub fn element(name: &str, attributes: &[(&str, &str)]) -> Element {
    let mut element = Element::new(name);
    element.attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    element
}

/// An element with text.
pub fn text(name: &str, text: &str) -> Element {
    let mut element = Element::new(name);
    element.children.push(XMLNode::Text(text.to_owned()));
    element
}

/// Puts an element at the end of another.
pub fn push(parent: &mut Element, child: Element) {
    parent.children.push(XMLNode::Element(child));
}

/// Replaces all children of that name by one with this text.
pub fn set_text(parent: &mut Element, name: &str, value: &str) {
    remove(parent, name);
    push(parent, text(name, value));
}

/// Removes all children of that name.
pub fn remove(parent: &mut Element, name: &str) {
    parent.children.retain(|node| node.as_element().is_none_or(|child| child.name != name));
}

/// The first child of that name, made if there is none.
pub fn child_or_new<'a>(parent: &'a mut Element, name: &str) -> Option<&'a mut Element> {
    if parent.get_child(name).is_none() {
        push(parent, Element::new(name));
    }
    parent.get_mut_child(name)
}

/// The child elements.
pub fn elements(parent: &Element) -> impl Iterator<Item = &Element> {
    parent.children.iter().filter_map(XMLNode::as_element)
}

/// The child elements, to be changed.
pub fn elements_mut(parent: &mut Element) -> impl Iterator<Item = &mut Element> {
    parent.children.iter_mut().filter_map(XMLNode::as_mut_element)
}

/// An attribute of an element, or of the first child of a name.
pub fn attribute<'a>(element: &'a Element, child: Option<&str>, key: &str) -> Option<&'a str> {
    let holder = match child {
        Some(name) => element.get_child(name)?,
        None => element,
    };
    holder.attributes.get(key).map(String::as_str)
}

/// The text of the first child of a name.
pub fn text_of(parent: &Element, name: &str) -> Option<String> {
    parent.get_child(name)?.get_text().map(|text| text.trim().to_owned())
}
