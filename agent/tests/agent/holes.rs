//! What an agent calls a hole, held against `qemu-img map` of the same file. Seeded: one number, one file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use kvm_clone_agent::protocol::{Geometry, HashJob, Message, Request};

use crate::client::{Client, Event, text};

/// Files that are compared.
const CASES: u64 = 40;
/// What holes are multiples of on every usual filesystem.
const BLOCK_BYTES: u64 = 4096;

/// The next number (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The chunks that lie in holes as a whole, by what qemu-img says; `None`: it is not installed.
fn by_qemu(path: &str, geometry: Geometry) -> Option<Vec<bool>> {
    let output = Command::new("qemu-img").args(["map", "--output=json", "-f", "raw", path]).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut holes = vec![true; usize::try_from(geometry.chunk_count()).unwrap()];
    let said = String::from_utf8(output.stdout).unwrap();
    for extent in said.split('}').filter(|extent| extent.contains("\"data\": true")) {
        let number = |key: &str| -> u64 {
            let from = extent.find(&format!("\"{key}\": ")).unwrap() + key.len() + 4;
            extent[from..].split([',', ' ']).next().unwrap().parse().unwrap()
        };
        let (start, end) = (number("start"), number("start") + number("length"));
        let chunk_bytes = u64::from(geometry.chunk_bytes);
        for index in start / chunk_bytes..end.div_ceil(chunk_bytes).min(geometry.chunk_count()) {
            holes[usize::try_from(index).unwrap()] = false;
        }
    }
    Some(holes)
}

fn by_agent(client: &mut Client, path: &str, geometry: Geometry) -> Vec<bool> {
    let wanted = vec![0..geometry.chunk_count()];
    let id = client.send(&Request::HashChunks(HashJob {
        path: path.to_owned(),
        inode: None,
        geometry,
        wanted,
        reread: false,
        patches: Vec::new(),
        below: Vec::new(),
    }));
    let mut holes = vec![false; usize::try_from(geometry.chunk_count()).unwrap()];
    loop {
        match client.next(id) {
            Event::Message(Message::Hashed { .. }) => {}
            Event::Message(Message::Holes { chunks }) => {
                chunks.for_each(|index| holes[usize::try_from(index).unwrap()] = true);
            }
            Event::Message(Message::Ended(end)) => return end.map(|()| holes).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn holes_are_where_qemu_img_sees_them() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("image");
    let mut client = Client::source();
    let mut holes_seen = 0;
    for case in 0..CASES {
        let mut state = case;
        let chunk_bytes = 4096_u32 << (next(&mut state) % 6);
        let image_bytes = next(&mut state) % (64 * u64::from(chunk_bytes)) + 1;
        let file = File::create(&path).unwrap();
        file.set_len(image_bytes).unwrap();
        for _ in 0..next(&mut state) % 12 {
            let start = next(&mut state) % image_bytes / BLOCK_BYTES * BLOCK_BYTES;
            let end = (start + next(&mut state) % (4 * u64::from(chunk_bytes)) + 1).min(image_bytes);
            // Zeros that were written are data to both.
            let byte = u8::try_from(next(&mut state) % 3).unwrap();
            file.write_all_at(&vec![byte; usize::try_from(end - start).unwrap()], start).unwrap();
        }
        file.sync_all().unwrap();
        let geometry = Geometry { image_bytes, chunk_bytes };
        let Some(expected) = by_qemu(&text(&path), geometry) else {
            panic!("qemu-img is not there; `make install` installs it")
        };
        assert_eq!(by_agent(&mut client, &text(&path), geometry), expected, "case {case}: {geometry:?}");
        holes_seen += expected.iter().filter(|hole| **hole).count();
    }
    assert!(holes_seen > 100, "nothing was compared");
}
