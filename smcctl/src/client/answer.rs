//! What smcd answered.

use crate::client::trouble::{Question, Trouble};
use api::ErrorBody;
use cli::output;
use cli::text::printable_line;
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use std::mem;

/// Characters shown of what is no answer of smcd's.
const EXCERPT: usize = 200;

/// An answer: JSON, or nothing.
#[derive(Debug)]
pub struct Answer {
    question: Question,
    status: StatusCode,
    text: String,
}

impl Answer {
    /// What came, which must be text.
    ///
    /// # Errors
    /// An answer that is not JSON.
    pub fn new(question: Question, status: StatusCode, body: &[u8]) -> anyhow::Result<Self> {
        match str::from_utf8(body) {
            Ok(text) => Ok(Self {
                question,
                status,
                text: text.trim().to_owned(),
            }),
            Err(error) => Err(Trouble::NotUnderstood(error.to_string()).over(&question)),
        }
    }

    /// The answer itself, if it is a success; otherwise what smcd says of it, as the error.
    ///
    /// # Errors
    /// What smcd says is wrong, with its advice.
    pub fn success(self) -> anyhow::Result<Self> {
        if self.status.is_success() {
            return Ok(self);
        }
        match self.view::<ErrorBody>() {
            Ok(refused) => Err(refused.into()),
            Err(_) => {
                let excerpt: String = self.text.chars().take(EXCERPT).collect();
                Err(Trouble::Foreign(self.status, printable_line(&excerpt)).over(&self.question))
            }
        }
    }

    /// Whether what was asked for was made by this request, and not before.
    pub fn is_new(&self) -> bool {
        self.status == StatusCode::CREATED
    }

    /// Whether there is nothing more to say.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// What it says. Every text in it is one line and printable.
    ///
    /// # Errors
    /// An answer that does not fit the type: smcd is of another version.
    pub fn view<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let read = || {
            let mut value: Value = serde_json::from_str(&self.text)?;
            make_printable(&mut value);
            serde_json::from_value(value)
        };
        read().map_err(|error: serde_json::Error| self.not_understood(&error))
    }

    /// The parts of an answer that is a list.
    ///
    /// # Errors
    /// An answer that is no list.
    pub fn items(&self) -> anyhow::Result<Vec<Self>> {
        let items: Result<Vec<&RawValue>, _> = serde_json::from_str(&self.text);
        let items = items.map_err(|error| self.not_understood(&error))?;
        let item = |item: &RawValue| Self {
            question: self.question.clone(),
            status: self.status,
            text: item.get().to_owned(),
        };
        Ok(items.into_iter().map(item).collect())
    }

    /// Prints it as it came, on one line; a list line by line, and nothing where there is nothing.
    ///
    /// # Errors
    /// Output that cannot be written.
    pub fn print_json(&self) -> anyhow::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        if self.text.starts_with('[') {
            return self
                .items()?
                .iter()
                .try_for_each(|item| output::json_text(&item.text));
        }
        let object: Result<&RawValue, _> = serde_json::from_str(&self.text);
        output::json_text(object.map_err(|error| self.not_understood(&error))?.get())
    }

    fn not_understood(&self, error: &serde_json::Error) -> anyhow::Error {
        Trouble::NotUnderstood(error.to_string()).over(&self.question)
    }
}

/// All texts below a value on one line each, with nothing in them that a terminal would obey.
fn make_printable(value: &mut Value) {
    match value {
        Value::String(text) => *text = printable_line(text),
        Value::Array(items) => items.iter_mut().for_each(make_printable),
        Value::Object(fields) => {
            let named = mem::take(fields).into_iter();
            *fields = named
                .map(|(name, mut value)| {
                    make_printable(&mut value);
                    (printable_line(&name), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
