//! A YAML document as a tree, within bounds. An alias shares the node of its anchor, so that no document is larger as a
//! tree than it is as text.

use std::collections::BTreeMap;
use std::rc::Rc;

use saphyr_parser::{Event, Parser};

/// Deeper than any key that is looked for.
const DEPTH_MAX: usize = 32;

/// Nodes of all documents of a text.
const NODES_MAX: usize = 50_000;

/// A node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A word, number or text; nothing at all is empty.
    Scalar(String),
    List(Vec<Rc<Value>>),
    /// Keys in the order of the text; those that are no scalars are left out.
    Map(Vec<(String, Rc<Value>)>),
}

impl Value {
    /// The value of a key of a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let mut entries = self.entries();
        entries.find(|(known, _)| *known == key).map(|(_, value)| value)
    }

    /// The entries of a mapping; none for anything else.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        let entries = match self {
            Value::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries.iter().map(|(key, value)| (key.as_str(), &**value))
    }

    /// The text of a scalar that is not empty.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Value::Scalar(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }
}

/// Reads all documents of a text.
///
/// # Errors
/// In words, what is wrong with it.
pub(super) fn documents(text: &str) -> Result<Vec<Rc<Value>>, String> {
    let mut loader = Loader::default();
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| error.to_string())?;
        loader.take(event)?;
    }
    Ok(loader.documents)
}

#[derive(Default)]
struct Loader {
    documents: Vec<Rc<Value>>,
    /// Lists and mappings that have not ended.
    open: Vec<Open>,
    anchors: BTreeMap<usize, Rc<Value>>,
    nodes: usize,
}

/// A list or mapping that has not ended.
struct Open {
    anchor: usize,
    /// Items of a list; keys and values of a mapping in turn.
    children: Vec<Rc<Value>>,
}

impl Loader {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, _, anchor, _) => self.add(anchor, Value::Scalar(text.into_owned())),
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => self.start(anchor),
            Event::SequenceEnd => self.end(Value::List),
            Event::MappingEnd => self.end(|children| Value::Map(pairs(&children))),
            Event::Alias(anchor) => {
                let known = self.anchors.get(&anchor).cloned();
                let node = known.ok_or("an alias lies within what it stands for")?;
                self.push(node)
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn start(&mut self, anchor: usize) -> Result<(), String> {
        if self.open.len() == DEPTH_MAX {
            return Err(format!("it is nested more than {DEPTH_MAX} levels deep"));
        }
        let children = Vec::new();
        self.open.push(Open { anchor, children });
        Ok(())
    }

    fn end(&mut self, value: impl FnOnce(Vec<Rc<Value>>) -> Value) -> Result<(), String> {
        let open = self.open.pop().ok_or("it ends what has not begun")?;
        self.add(open.anchor, value(open.children))
    }

    fn add(&mut self, anchor: usize, value: Value) -> Result<(), String> {
        let node = Rc::new(value);
        // 0 stands for no anchor.
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.push(node)
    }

    fn push(&mut self, node: Rc<Value>) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(format!("it has more than {NODES_MAX} nodes"));
        }
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.documents.push(node),
        }
        Ok(())
    }
}

fn pairs(children: &[Rc<Value>]) -> Vec<(String, Rc<Value>)> {
    let pairs = children.chunks_exact(2);
    pairs
        .filter_map(|pair| match &*pair[0] {
            Value::Scalar(key) => Some((key.clone(), Rc::clone(&pair[1]))),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Rc<Value> {
        let mut documents = documents(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert_eq!(documents.len(), 1, "{text:?}");
        documents.remove(0)
    }

    #[test]
    fn block_and_flow_style_anchors_and_quotes_mean_the_same() {
        let block = "a: &x\n  b:\n    - 1\n    - two\nc: *x\n";
        let flow = "{\"a\": &x {'b': [1, \"two\"]}, c: *x}";
        assert_eq!(one(block), one(flow));
        let tree = one(flow);
        let list = tree.get("c").and_then(|c| c.get("b"));
        let words = ["1", "two"].map(|word| Rc::new(Value::Scalar(word.to_owned())));
        assert_eq!(list, Some(&Value::List(words.to_vec())));
        assert_eq!(tree.get("b"), None);
    }

    #[test]
    fn what_is_no_yaml_or_has_no_bounds_is_an_error() {
        for text in ["a: [1", "a: *none", "&a [*a]", "{a: }}", "\"", "a:\n\tb: c"] {
            documents(text).expect_err(text);
        }
        let error = |text: String| documents(&text).expect_err("it has no bounds");
        error("[".repeat(1000) + &"]".repeat(1000));
        assert!(error("- ".repeat(100_000)).contains("nested"));
        assert!(error((0..2000).map(|n| format!("{}a:\n", " ".repeat(n))).collect()).contains("nested"));
        assert!(error("- a\n".repeat(NODES_MAX + 1)).contains("nodes"));
    }

    #[test]
    fn a_bomb_of_aliases_takes_no_more_than_its_text() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..40 {
            let before = format!("*a{}, ", level - 1).repeat(9);
            bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        let tree = one(&bomb);
        assert_eq!(tree.entries().count(), 40);
    }
}
