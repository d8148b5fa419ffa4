//! Conversations from a fuzzer's bytes.

use std::collections::BTreeSet;

use arbitrary::{Result, Unstructured};

use super::Session;
use super::exports;
use super::wire::{self, Client, Fields};
use crate::handshake::Tls;
use crate::proto::{cmd, cmd_flag, opt};
use crate::reply::ReplyStyle;
use ReplyStyle::{Extended, Simple, Structured};

/// Options and commands in one script.
const OPTIONS: usize = 30;
const COMMANDS: usize = 40;
/// Names that clients ask for, most of them good.
const NAMES: [&str; 9] = [
    "rw",
    "overlay",
    "disk",
    "huge",
    "",
    "many",
    "secret",
    "shut",
    "no such export",
];
const QUERIES: [&str; 7] = [
    "base:allocation",
    exports::PAGES,
    exports::BROKEN,
    "base:",
    "fuzz:",
    "other:thing",
    "many:7",
];

/// A client that goes through a whole handshake of one style before it asks for anything.
pub(super) fn prelude(client: &mut Client, style: ReplyStyle, name: &str) {
    client.flags(3);
    match style {
        Simple => {}
        Structured => client.option(opt::STRUCTURED_REPLY, &[]),
        Extended => client.option(opt::EXTENDED_HEADERS, &[]),
    }
    if style != Simple {
        let data = wire::meta(name, &["base:allocation", exports::PAGES]);
        client.option(opt::SET_META_CONTEXT, &data);
    }
    client.option(opt::GO, &wire::info(name, &[1, 2, 3]));
}

/// Any bytes, perhaps behind a handshake that is good; `control` decides what the server makes of them.
pub(super) fn raw(control: [u8; 4], bytes: &[u8]) -> Session {
    let [mode, start, cutting, drain] = control;
    let mut client = Client::default();
    if let Some(style) = [Simple, Structured, Extended].get(usize::from(start % 4)) {
        prelude(&mut client, *style, NAMES[usize::from(start / 4) % 6]);
    }
    client.bytes.extend_from_slice(bytes);
    let length = client.bytes.len();
    let mut session = Session::of(client.bytes);
    session.tls = [Tls::None, Tls::None, Tls::Required, Tls::Active][usize::from(mode % 4)];
    session.chance = u64::from(mode / 4);
    let mut at = 0;
    while cutting > 0 && at < length {
        at += 1 + (at * 7 + usize::from(cutting)) % usize::from(cutting);
        session.cuts.insert(at);
    }
    if drain >= 0xc0 {
        session.drained_at = length * usize::from(drain - 0xc0) / 0x40;
        session.cuts.insert(session.drained_at);
    }
    session
}

/// Where a client stops, and whether it listens then.
pub(super) fn end(input: &mut Unstructured<'_>) -> (u16, bool) {
    let cut: u16 = input.arbitrary().unwrap_or(u16::MAX);
    let stops = input.ratio(1, 3).unwrap_or(false);
    let listens = !input.ratio(1, 4).unwrap_or(false);
    (if stops { cut } else { u16::MAX }, listens)
}

/// A script from all of a fuzzer's bytes. For a `real` server there is no TLS and no shutdown in it, and no cookie is
/// used twice.
pub(super) fn write(input: &mut Unstructured<'_>, real: bool) -> Session {
    let mut writer = Writer {
        input,
        client: Client::default(),
        cuts: BTreeSet::new(),
        style: Simple,
        real,
    };
    // Past the end of the fuzzer's bytes there is no more to be said.
    let (tls, drain) = writer.session().unwrap_or((Tls::None, None));
    let Writer { client, cuts, .. } = writer;
    let mut session = Session::of(client.bytes);
    session.cuts = cuts;
    session.tls = tls;
    session.chance = session.client.len() as u64;
    if let Some(drain) = drain {
        session.drained_at = usize::from(drain) % (session.client.len() + 1);
        session.cuts.insert(session.drained_at);
    }
    session
}

struct Writer<'a, 'b> {
    input: &'a mut Unstructured<'b>,
    client: Client,
    cuts: BTreeSet<usize>,
    /// What was agreed on, if nothing went wrong.
    style: ReplyStyle,
    real: bool,
}

impl Writer<'_, '_> {
    fn session(&mut self) -> Result<(Tls, Option<u16>)> {
        let mut setting = (Tls::None, None);
        if !self.real {
            if self.input.ratio(1, 4)? {
                setting.0 = *self.input.choose(&[Tls::Required, Tls::Active])?;
            }
            if self.input.ratio(1, 8)? {
                setting.1 = Some(self.input.arbitrary()?);
            }
        }
        // What is said up to the end of the fuzzer's bytes counts.
        let _ = self.talk(setting.0);
        Ok(setting)
    }

    fn talk(&mut self, tls: Tls) -> Result<()> {
        let flags = *self.input.choose(&[3, 3, 3, 3, 1, 1, 0, 2, 4, 1 << 31])?;
        self.client.flags(flags);
        if tls == Tls::Required && self.input.ratio(7, 8)? {
            self.client.option(opt::STARTTLS, &[]);
            self.cuts.insert(self.client.bytes.len());
        }
        let style = *self.input.choose(&[Simple, Structured, Extended, Extended])?;
        self.negotiate_style(style);
        let name = if self.input.ratio(4, 5)? {
            *self.input.choose(&NAMES[..4])?
        } else {
            self.name()?
        };
        for _ in 0..self.input.int_in_range(0..=3)? {
            self.any_option(name)?;
        }
        if self.input.ratio(1, 40)? {
            for _ in 0..self.input.int_in_range(0..=OPTIONS)? {
                self.any_option(name)?;
            }
        }
        if style != Simple && self.input.ratio(5, 6)? {
            self.meta_option(opt::SET_META_CONTEXT, name)?;
        }
        if self.input.ratio(1, 6)? {
            self.client.option(opt::EXPORT_NAME, name.as_bytes());
        } else {
            let infos = self.infos()?;
            self.client.option(opt::GO, &wire::info(name, &infos));
        }
        while self.client.cookie < COMMANDS as u64 && !self.input.is_empty() {
            self.command()?;
        }
        Ok(())
    }

    fn negotiate_style(&mut self, style: ReplyStyle) {
        self.style = style;
        match style {
            Simple => {}
            Structured => self.client.option(opt::STRUCTURED_REPLY, &[]),
            Extended => self.client.option(opt::EXTENDED_HEADERS, &[]),
        }
    }

    fn name(&mut self) -> Result<&'static str> {
        self.input.choose(&NAMES).copied()
    }

    fn infos(&mut self) -> Result<Vec<u16>> {
        (0..self.input.int_in_range(0..=4)?)
            .map(|_| self.input.int_in_range(0..=5))
            .collect()
    }

    fn meta_option(&mut self, option: u32, name: &str) -> Result<()> {
        let mut queries: Vec<&str> = Vec::new();
        for _ in 0..self.input.int_in_range(0..=4)? {
            queries.push(*self.input.choose(&QUERIES)?);
        }
        let many: Vec<String> = (0..70).map(|number| format!("many:{number}")).collect();
        if self.input.ratio(1, 8)? {
            let count = self.input.int_in_range(60..=70)?;
            queries.extend(many[..count].iter().map(String::as_str));
        }
        self.nearly(option, wire::meta(name, &queries))
    }

    fn any_option(&mut self, name: &str) -> Result<()> {
        let other = self.name()?;
        let name = if self.input.ratio(1, 2)? { name } else { other };
        match self.input.int_in_range(0..=11)? {
            0 => self.nearly(opt::LIST, Vec::new()),
            1 | 2 => {
                let infos = self.infos()?;
                self.nearly(opt::INFO, wire::info(name, &infos))
            }
            3 => self.meta_option(opt::LIST_META_CONTEXT, name),
            4 | 5 => self.meta_option(opt::SET_META_CONTEXT, name),
            6 => self.nearly(opt::STRUCTURED_REPLY, Vec::new()),
            7 if self.input.ratio(1, 4)? => self.nearly(opt::EXTENDED_HEADERS, Vec::new()),
            8 => {
                self.nearly(opt::STARTTLS, Vec::new())?;
                self.cuts.insert(self.client.bytes.len());
                Ok(())
            }
            9 if self.input.ratio(1, 8)? => self.nearly(opt::ABORT, Vec::new()),
            10 => {
                let length = self.input.int_in_range(0..=9000)?;
                let option = self.input.int_in_range(0..=14)?;
                self.client.option(option, &vec![b'x'; length]);
                Ok(())
            }
            11 => {
                let infos = self.infos()?;
                let name = *self.input.choose(&["secret", "shut", "no such export", "a\0b"])?;
                self.nearly(opt::GO, wire::info(name, &infos))
            }
            _ => Ok(()),
        }
    }

    /// An option, sometimes with data that is not quite right.
    fn nearly(&mut self, option: u32, mut data: Vec<u8>) -> Result<()> {
        if self.input.ratio(1, 10)? {
            let at = self.input.int_in_range(0..=data.len())?;
            match self.input.int_in_range(0..=2)? {
                0 => data.truncate(at),
                1 => data.insert(at, self.input.arbitrary()?),
                _ => data.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 0x80),
            }
        }
        self.client.option(option, &data);
        Ok(())
    }

    fn offset(&mut self) -> Result<u64> {
        let borders: Vec<u64> = exports::borders().collect();
        let near = *self.input.choose(&borders)?;
        Ok(match self.input.int_in_range(0..=5)? {
            0 => self.input.int_in_range(0..=exports::SIZE)?,
            1 => self.input.int_in_range(0..=exports::SIZE / 512)? * 512,
            2 => near,
            3 => near.wrapping_add(self.input.int_in_range(0..=4096)?),
            _ => near.wrapping_sub(self.input.int_in_range(0..=70_000)?),
        })
    }

    fn length(&mut self) -> Result<u64> {
        let most = u64::from(exports::limits().max_payload_bytes);
        Ok(match self.input.int_in_range(0..=9)? {
            0 => self.input.int_in_range(0..=3)?,
            1 | 2 => self.input.int_in_range(0..=4096)?,
            3 | 4 => self.input.int_in_range(0..=128)? * 512,
            5 => self.input.int_in_range(0..=70_000)?,
            6 => self.input.int_in_range(most - 2..=most + 1)?,
            7 => self.input.int_in_range(260_000..=exports::SIZE)?,
            8 => *self
                .input
                .choose(&[u64::from(u32::MAX), 1 << 32, u64::MAX, i64::MAX as u64])?,
            _ => 512,
        })
    }

    fn command(&mut self) -> Result<()> {
        let command = match self.input.int_in_range(0..=23)? {
            0..=6 => cmd::READ,
            7..=10 => cmd::WRITE,
            11 | 12 => cmd::WRITE_ZEROES,
            13 | 14 => cmd::TRIM,
            15..=19 => cmd::BLOCK_STATUS,
            20 => cmd::CACHE,
            21 => cmd::FLUSH,
            22 if self.input.ratio(1, 4)? => cmd::DISC,
            _ => self.input.int_in_range(0..=9)?,
        };
        let mut fields = Fields {
            flags: self.command_flags(command)?,
            command,
            offset: self.offset()?,
        };
        let mut length = self.length()?;
        if command == cmd::FLUSH && self.input.ratio(7, 8)? {
            (fields.offset, length) = (0, 0);
        }
        if !self.real && self.input.ratio(1, 8)? {
            self.client.cookie = self.client.cookie.saturating_sub(1);
        }
        let extended = self.style == Extended;
        if command == cmd::WRITE {
            let length = length.min(400 << 10);
            let announced = extended && self.input.ratio(9, 10)?;
            fields.flags |= if announced { cmd_flag::PAYLOAD_LEN } else { 0 };
            let first: u8 = self.input.arbitrary()?;
            let data: Vec<u8> = (first..=255)
                .cycle()
                .take(usize::try_from(length).unwrap())
                .collect();
            self.client.request(self.style, fields, length, &data);
        } else if extended && fields.flags & cmd_flag::PAYLOAD_LEN != 0 {
            let payload = self.filter(length)?;
            self.client
                .request(self.style, fields, payload.len() as u64, &payload);
        } else {
            self.client.request(self.style, fields, length, &[]);
        }
        if self.input.ratio(1, 4)? {
            let back = self.input.int_in_range(0..=40)?;
            self.cuts.insert(self.client.bytes.len().saturating_sub(back));
        }
        Ok(())
    }

    fn command_flags(&mut self, command: u16) -> Result<u16> {
        if self.input.ratio(1, 12)? {
            return Ok(1 << self.input.int_in_range(0..=7)?);
        }
        let own: &[u16] = match command {
            cmd::READ if self.style != Simple => &[0, 0, cmd_flag::DF],
            cmd::WRITE_ZEROES => &[
                0,
                cmd_flag::NO_HOLE,
                cmd_flag::FAST_ZERO,
                cmd_flag::FAST_ZERO | cmd_flag::NO_HOLE,
            ],
            cmd::BLOCK_STATUS if self.style == Extended => {
                &[0, cmd_flag::REQ_ONE, cmd_flag::PAYLOAD_LEN, cmd_flag::PAYLOAD_LEN]
            }
            cmd::BLOCK_STATUS => &[0, cmd_flag::REQ_ONE],
            _ => &[0],
        };
        let durable = if self.input.ratio(1, 6)? { cmd_flag::FUA } else { 0 };
        Ok(*self.input.choose(own)? | durable)
    }

    /// A filter of context ids, most of them right.
    fn filter(&mut self, length: u64) -> Result<Vec<u8>> {
        let mut payload = length.to_be_bytes().to_vec();
        for _ in 0..self.input.int_in_range(0..=3)? {
            payload.extend(self.input.int_in_range(1..=4_u32)?.to_be_bytes());
        }
        if self.input.ratio(1, 10)? {
            payload.truncate(self.input.int_in_range(0..=payload.len())?);
        }
        Ok(payload)
    }
}
