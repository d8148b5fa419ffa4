//! docs/format.md and the code say the same: its byte tables and test vectors are read and compared here.

use super::model::Model;
use crate::format::digest::{FRAME_CHECK_LEN, frame_check, node_digest, seal_check};
use crate::format::layer::{HEADER_LEN, LayerIdentity, RawHeader};
use crate::format::node::{NODE_PLAIN_LEN, NODE_STORED_MAX, Node, closing_check};
use crate::format::pointer::{POINTER_LEN, Place, RawPointer};
use crate::{ClusterSize, Codec, Digest, NodeId, Pointer, Uuid};
use std::mem::offset_of;
use zerocopy::IntoBytes;

const DOCUMENT: &str = include_str!("../../../docs/format.md");

/// The lines of one section, from its heading to the next.
fn section(heading: &str) -> impl Iterator<Item = &'static str> {
    let lines = DOCUMENT
        .lines()
        .skip_while(move |line| line.trim_start_matches('#').trim() != heading);
    let mut found = lines.skip(1).take_while(|line| !line.starts_with('#')).peekable();
    assert!(found.peek().is_some(), "docs/format.md has no section {heading}");
    found
}

/// Rows of the tables in a section, without their heads and rules.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        line.trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().replace('`', ""))
            .collect()
    };
    let table = section(heading).filter(|line| line.starts_with('|'));
    table
        .filter(|line| !line.contains("---"))
        .skip(1)
        .map(cells)
        .collect()
}

/// (offset, size, field) as a section's byte table gives them.
fn documented(heading: &str) -> Vec<(usize, usize, String)> {
    let parse = |row: Vec<String>| (row[0].parse().unwrap(), row[1].parse().unwrap(), row[2].clone());
    rows(heading).into_iter().map(parse).collect()
}

macro_rules! layout {
    ($type:ty { $($field:ident),* }) => {{
        let starts = vec![$((offset_of!($type, $field), stringify!($field).to_owned())),*];
        let ends = starts.iter().skip(1).map(|(start, _)| *start).chain([size_of::<$type>()]);
        starts.iter().zip(ends).map(|((start, name), end)| (*start, end - start, name.clone())).collect::<Vec<_>>()
    }};
}

#[test]
fn byte_tables_are_the_layout_of_the_code() {
    assert_eq!(
        documented("Pointer"),
        layout!(RawPointer {
            digest,
            layer,
            stored_len,
            codec,
            offset
        })
    );
    let header = layout!(RawHeader {
        magic,
        version,
        header_len,
        incompatible,
        compatible,
        chain_uuid,
        layer_uuid,
        layer,
        cluster_size,
        reserved,
        check
    });
    assert_eq!(documented("Layer header"), header);
    let node = [
        (0, NODE_PLAIN_LEN, "pointers".to_owned()),
        (NODE_PLAIN_LEN, 32, "check".to_owned()),
    ];
    assert_eq!(documented("Node block"), node);
    assert_eq!(
        (size_of::<RawPointer>(), size_of::<RawHeader>()),
        (POINTER_LEN, HEADER_LEN)
    );
    assert_eq!((NODE_PLAIN_LEN, NODE_STORED_MAX), (256 * POINTER_LEN, 12_320));
    assert_eq!(FRAME_CHECK_LEN, 8);
}

#[test]
fn codecs_are_those_of_the_document() {
    let codes: Vec<(String, String)> = rows("Codecs")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let known = [Codec::Null, Codec::Raw, Codec::Zstd, Codec::Damaged];
    let expected = known.map(|codec| ((codec as u8).to_string(), format!("{codec:?}").to_lowercase()));
    assert_eq!(codes, expected);
}

fn sample_layer() -> LayerIdentity {
    let uuid = |first: u8| Uuid::from_bytes(std::array::from_fn(|i| first + i as u8));
    LayerIdentity {
        chain: uuid(0x00),
        uuid: uuid(0x10),
        layer: 1,
        cluster_size: ClusterSize::K64,
    }
}

fn sample_pointer() -> Pointer {
    let place = Place {
        layer: 1,
        offset: 8192,
        len: 3,
    };
    Pointer {
        digest: Digest::of_cluster(b"abc"),
        codec: Codec::Raw,
        place,
    }
}

/// A disk of 16 MiB and 3 bytes: the first byte of cluster i is 1 + i mod 255, all others are zero.
fn sample_disk() -> Model {
    let mut model = Model::new((16 << 20) + 3, ClusterSize::K64);
    for index in 0..257 {
        let mut bytes = model.get(index);
        bytes[0] = 1 + (index % 255) as u8;
        model.set(index, bytes);
    }
    model
}

fn vectors() -> Vec<(&'static str, String)> {
    let mut abc = Model::new(3, ClusterSize::K64);
    abc.set(0, b"abc".to_vec());
    let mut children = [0; 8192];
    children[..32].copy_from_slice(&Digest::of_cluster(b"abc").0);
    let header = sample_layer().to_raw();
    let mut node = Node::null();
    *node.child_mut(0) = sample_pointer();
    let plain: Vec<u8> = node
        .children()
        .iter()
        .flat_map(|child| child.to_raw().as_bytes().to_vec())
        .collect();
    let place = closing_check(
        &plain,
        &sample_layer().uuid.bytes(),
        12_288,
        NodeId { level: 0, index: 0 },
    );
    vec![
        ("cluster", Digest::of_cluster(b"abc").to_string()),
        ("node", node_digest(&children).to_string()),
        ("disk abc", abc.digest()),
        ("disk zero", Model::new(1 << 20, ClusterSize::K16).digest()),
        ("disk two levels", sample_disk().digest()),
        ("pointer", hex::encode(sample_pointer().to_raw().as_bytes())),
        ("header", hex::encode(&header.as_bytes()[..72])),
        ("header check", hex::encode(header.check)),
        ("node place", place.to_string()),
        ("frame", hex::encode(frame_check(b"abc"))),
        ("seal", seal_check(b"{}\n").to_string()),
    ]
}

#[test]
fn test_vectors_are_what_the_code_computes() {
    let documented: Vec<(String, String)> = rows("Test vectors")
        .into_iter()
        .map(|row| (row[0].clone(), row[2].clone()))
        .collect();
    let computed: Vec<(String, String)> = vectors()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    assert_eq!(documented, computed);
}
