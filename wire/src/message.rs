//! What a frame says.
//!
//! Messages below number 64 are JSON objects, in which members that a reader does not know are ignored; those from 64 on are binary.
//! *Numbered* messages carry a number and are applied once and in order; they may come by any connection of the session. Questions
//! carry a number of their own kind, which their answers repeat.

use crate::digests::{Digests, Want};
use crate::error::{Error, Result};
use crate::frame::{Frame, body_max};
use crate::hexed::{Id128, Root};
use crate::put::Put;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::Range;

/// First on every connection, from the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions of the protocol that the source speaks.
    pub versions: Vec<u32>,
    /// The source's program and its version, for logs.
    pub software: String,
    /// The session to join, with a data connection or after all connections were lost; a new one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Id128>,
    /// Which data connection this is, from 1 on; absent for the control connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<u32>,
}

/// The target takes the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u32,
    /// The target's program and its version, for logs.
    pub software: String,
    /// The session.
    pub session: Id128,
    /// The last numbered message that was applied; the source sends again what follows.
    pub received: u64,
    /// Bytes of numbered messages that may be under way.
    pub credit_bytes: u64,
}

/// Why a target does not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Refusal {
    /// None of the versions is spoken here.
    Version,
    /// The certificate gives no right to it.
    Rights,
    /// There is no such session (any more): begin anew, with the same run.
    NoSession,
    /// Another sync writes the chain, or there are as many sessions as there may be. It may be tried again.
    Busy,
    /// What was asked for is not possible with what the store has.
    Invalid,
    /// The source's quota is used up, or the store is full.
    Full,
    /// What the store has is damaged.
    Damaged,
    /// Source and target disagree about what was sent: nothing is committed.
    Mismatch,
    /// The source did something that the protocol does not allow.
    Protocol,
    /// The target goes down; it may be tried again.
    Closing,
    /// The target could not read or write its store.
    Failed,
    /// What only a later version of this crate knows.
    #[serde(other)]
    Other,
}

/// The target ends the session, or does not begin it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Why, for programs.
    pub code: Refusal,
    /// Why, for people.
    pub text: String,
    /// After how many seconds it may be tried again; absent where that is of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
}

/// The first numbered message: a sync begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The run: the same one when it begins again after the target has lost its session.
    pub run: Id128,
    /// What is to be written, as both programs know it.
    pub request: Value,
    /// The disks, in the order in which messages number them from 0 on.
    pub disks: Vec<Value>,
}

/// The sync has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The number that the image will have.
    pub sequence: u64,
    /// How people will write the image.
    pub label: String,
    /// The chain.
    pub chain: Id128,
    /// Bytes of a cluster.
    pub cluster_bytes: u32,
    /// The image that this one is made from, without its layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Value>,
    /// The unfinished sync that is resumed, without its layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<Value>,
    /// What could not be used, and why: a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What each disk is compared with.
    pub bases: Vec<BaseOf>,
}

/// What a disk is compared with in its next pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseOf {
    /// Its size in bytes; absent where there is none: everything is compared with zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Digest of the tree's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    /// Id of the image that a tracker's bits must be relative to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracked_from: Option<Id128>,
}

/// Numbered: a pass over a disk begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeginPass {
    /// The disk.
    pub disk: u32,
    /// How changes are found.
    pub method: Value,
    /// Why that way.
    pub reason: String,
}

/// The answer to [`BeginPass`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassBegun {
    /// What it is compared with from here on.
    pub base: BaseOf,
}

/// Numbered: a pass has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndPass {
    /// The disk.
    pub disk: u32,
    /// Bytes that were read and compared.
    pub compared_bytes: u64,
}

/// Numbered: something is noted in the image's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The disk; absent for what concerns all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u32>,
    /// What is noted, as both programs know it.
    pub note: Value,
}

/// Numbered: which clusters are to come although nothing changed?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The disk.
    pub disk: u32,
    /// What is asked for.
    pub what: Asked,
}

/// What [`Ask`] asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// Clusters that are damaged in what the disk is built upon; nodes above these leaves are looked at.
    Anew {
        /// The first leaf.
        first: u64,
        /// Behind the last one.
        end: u64,
    },
    /// Clusters of which sectors could not be read at the source.
    Unreadable,
}

/// The answer to [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Clusters, ascending; absent where they are not known.
    pub clusters: Option<Vec<Range<u64>>>,
}

/// Numbered: the image is to exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// The run: a commit that is asked for again gets the same answer.
    pub run: Id128,
    /// The consistency class.
    pub consistency: Value,
    /// Why it is no better.
    pub reason: String,
    /// The digest of each disk as the source has computed it.
    pub disks: Vec<Root>,
}

/// The image exists, and survives a power cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Its record, without its layers.
    pub image: Value,
    /// What the target did beside it: a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How far the target has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upto {
    /// Number of the last message of which it is true, and of all before it.
    pub seq: u64,
}

/// How much may be under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Bytes of numbered messages.
    pub bytes: u64,
}

/// Why nothing moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// For people; absent when it moves again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A message that says nothing more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nothing {}

macro_rules! messages {
    ($( $(#[$doc:meta])* $name:ident = $kind:literal : $body:ty ),+ $(,)?) => {
        /// What a frame says.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Message {
            $( $(#[$doc])* $name($body), )+
        }

        impl Message {
            /// The number of its kind.
            pub fn kind(&self) -> u8 {
                match self { $( Self::$name(_) => $kind, )+ }
            }

            /// Its frame. `seq` is the number of a numbered message or of a question, also in its answer; 0 for others.
            ///
            /// # Errors
            /// `TooMuch` when it does not fit into a frame.
            pub fn into_frame(self, seq: u64) -> Result<Frame> {
                let kind = self.kind();
                let body = match self { $( Self::$name(body) => body.into_body(), )+ };
                let frame = Frame { kind, seq, body };
                let most = body_max(frame.kind);
                if frame.body.len() > most {
                    let length = frame.body.len();
                    return Err(Error::too_much(format!("a message has {length} bytes, of at most {most}")));
                }
                Ok(frame)
            }

            /// What a frame says.
            ///
            /// # Errors
            /// `Malformed` for a kind that does not exist, and for a body that does not fit it.
            pub fn from_frame(frame: Frame) -> Result<Message> {
                match frame.kind {
                    $( $kind => <$body>::from_body(frame.body).map(Self::$name), )+
                    kind => Err(Error::malformed(format!("there is no message of kind {kind}"))),
                }
            }
        }

        /// Names and numbers of all messages.
        #[cfg(any(test, feature = "fuzzing"))]
        pub(crate) const KINDS: &[(&str, u8)] = &[ $( (stringify!($name), $kind), )+ ];
    };
}

messages! {
    /// See [`Hello`].
    Hello = 1: Hello,
    /// See [`Welcome`].
    Welcome = 2: Welcome,
    /// See [`Refuse`].
    Refuse = 3: Refuse,
    /// Both: an answer is wanted, or the other side is to know that this one is there.
    Ping = 4: Nothing,
    /// The answer to a ping.
    Pong = 5: Nothing,
    /// Numbered; see [`Begin`].
    Begin = 8: Begin,
    /// See [`Begun`].
    Begun = 9: Begun,
    /// Numbered; see [`BeginPass`].
    BeginPass = 10: BeginPass,
    /// See [`PassBegun`].
    PassBegun = 11: PassBegun,
    /// Numbered; see [`EndPass`].
    EndPass = 12: EndPass,
    /// Numbered: what came so far is to be made durable; [`Durable`](Message::Durable) follows.
    Checkpoint = 13: Nothing,
    /// Numbered; see [`Note`].
    Note = 14: Note,
    /// Numbered; see [`Ask`].
    Ask = 15: Ask,
    /// See [`Told`].
    Told = 16: Told,
    /// Numbered; see [`Commit`].
    Commit = 17: Commit,
    /// See [`Committed`].
    Committed = 18: Committed,
    /// Numbered: the sync ends here for now. What came is made durable, for the next one to resume.
    Leave = 19: Nothing,
    /// The target has done what [`Leave`](Message::Leave) asked for; the session has ended.
    Left = 20: Nothing,
    /// From the target: all numbered messages up to this one were applied. The source need not send them again.
    Received = 24: Upto,
    /// From the target: what came up to this number survives a power cut.
    Durable = 25: Upto,
    /// From the target; see [`Credit`].
    Credit = 26: Credit,
    /// From the target; see [`Pause`].
    Pause = 27: Pause,
    /// Numbered: clusters that changed. See [`Put`].
    Put = 64: Put,
    /// A question for digests; see [`Want`].
    Want = 65: Want,
    /// Its answer; see [`Digests`].
    Digests = 66: Digests,
}

impl Frame {
    /// Whether it is a question ([`Message::Want`]): its number has no place in the order.
    pub fn is_question(&self) -> bool {
        self.kind == 65
    }
}

/// What a frame's body is made of.
pub(crate) trait Body: Sized {
    fn into_body(self) -> Vec<u8>;
    fn from_body(body: Vec<u8>) -> Result<Self>;
}

/// Bodies in JSON.
macro_rules! json {
    ($($name:ty),+) => {
        $(
            impl Body for $name {
                fn into_body(self) -> Vec<u8> {
                    // Nothing in a message has keys that are no strings, or refuses to be written.
                    serde_json::to_vec(&self).unwrap_or_default()
                }

                fn from_body(body: Vec<u8>) -> Result<Self> {
                    from_json(&body)
                }
            }
        )+
    };
}

json!(
    Hello, Welcome, Refuse, Nothing, Begin, Begun, BeginPass, PassBegun, EndPass, Note, Ask, Told, Commit,
    Committed, Upto, Credit, Pause
);

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body)
        .map_err(|error| Error::malformed(format!("a message cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn the_document_has_every_message_with_its_number() {
        let document = include_str!("../../docs/wire.md");
        for (name, kind) in KINDS {
            let row = format!("| {kind} | {name} |");
            assert!(document.contains(&row), "docs/wire.md lacks {row:?}");
        }
        let table = document.split("| kind | message |").nth(1).unwrap();
        let table = table.split("\n\n").next().unwrap();
        let rows = table.lines().filter(|line| {
            let number = line.strip_prefix("| ").and_then(|rest| rest.split(' ').next());
            number.is_some_and(|number| number.parse::<u8>().is_ok())
        });
        assert_eq!(
            rows.count(),
            KINDS.len(),
            "docs/wire.md has a message that there is not"
        );
    }

    #[test]
    fn messages_come_out_as_they_went_in_and_unknown_members_are_ignored() {
        let hello = Hello {
            versions: vec![1],
            software: "smc".to_owned(),
            session: Some(Id128([7; 16])),
            lane: None,
        };
        let frame = Message::Hello(hello.clone()).into_frame(0).unwrap();
        let text = String::from_utf8(frame.body.clone()).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"versions":[1],"software":"smc","session":"{}"}}"#,
                "07".repeat(16)
            )
        );
        assert_eq!(Message::from_frame(frame).unwrap(), Message::Hello(hello));
        let newer = Frame {
            kind: 3,
            seq: 0,
            body: br#"{"code":"moon-phase","text":"x","colour":1}"#.to_vec(),
        };
        let Message::Refuse(refuse) = Message::from_frame(newer).unwrap() else {
            panic!("it is another message");
        };
        assert_eq!(refuse.code, Refusal::Other);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (kind, body) in [
            (7, &b"{}"[..]),
            (1, b"{"),
            (1, b"[]"),
            (24, b"{\"seq\":-1}"),
            (64, b""),
            (255, b""),
        ] {
            let frame = Frame {
                kind,
                seq: 0,
                body: body.to_vec(),
            };
            assert_eq!(
                Message::from_frame(frame).unwrap_err().kind(),
                ErrorKind::Malformed,
                "{kind}"
            );
        }
        let long = Pause {
            reason: Some("x".repeat(crate::frame::JSON_MAX_BYTES)),
        };
        assert_eq!(
            Message::Pause(long).into_frame(0).unwrap_err().kind(),
            ErrorKind::TooMuch
        );
    }
}
