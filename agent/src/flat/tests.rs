//! Small chains made by hand. What QEMU says of larger ones is asked in the program's own tests.

use std::convert::Infallible;

use super::*;

const CLUSTER: usize = 512;

/// A file of bytes, with holes where its 512-byte blocks are zero, and a count of what was read of it.
struct Bytes(Vec<u8>, std::cell::Cell<usize>);

impl LayerFile for Bytes {
    type Error = Infallible;

    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> Result<(), Infallible> {
        let start = usize::try_from(position).unwrap();
        self.1.set(self.1.get() + bytes.len());
        bytes.copy_from_slice(&self.0[start..start + bytes.len()]);
        Ok(())
    }

    fn data_from(&self, position: u64) -> Result<Range<u64>, Infallible> {
        let blocks = self.0.chunks(CLUSTER).map(|block| block.iter().any(|byte| *byte != 0));
        let data = (0..).zip(blocks).filter(|(_, data)| *data).map(|(block, _)| block * CLUSTER as u64);
        let start = data.clone().find(|start| start + CLUSTER as u64 > position);
        Ok(start.map_or(u64::MAX..u64::MAX, |start| start.max(position)..start + CLUSTER as u64))
    }
}

fn file(bytes: Vec<u8>) -> Bytes {
    Bytes(bytes, std::cell::Cell::new(0))
}

/// An image of so many clusters: header, both tables, and the clusters that the entries name, from the fourth on.
fn image(guest_clusters: u64, entries: &[u64], on_another: bool, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 3 * CLUSTER];
    let mut put = |at: usize, number: u64, width: usize| {
        bytes[at..at + width].copy_from_slice(&number.to_be_bytes()[8 - width..]);
    };
    for (at, number) in [(0, 0x5146_49fb), (4, 3), (20, 9), (36, 1), (100, 104)] {
        put(at, number, 4);
    }
    for (at, number) in [(8, u64::from(on_another) * 112), (24, guest_clusters * 512), (40, 512), (512, 1024)] {
        put(at, number, 8);
    }
    for (at, entry) in entries.iter().enumerate() {
        put(1024 + at * 8, *entry, 8);
    }
    bytes.extend(data);
    bytes
}

fn open(layers: Vec<(Vec<u8>, ImageFormat)>) -> Result<Chain<Bytes>, ChainError<Infallible>> {
    Chain::open(layers.into_iter().map(|(bytes, format)| (file(bytes), format)).collect())
}

fn seen(chain: &Chain<Bytes>) -> Result<Vec<u8>, ChainError<Infallible>> {
    let mut bytes = vec![0xee; usize::try_from(chain.bytes()).unwrap()];
    chain.read(0, &mut bytes).map(|()| bytes)
}

#[test]
fn the_highest_image_that_has_something_counts_and_beyond_an_end_there_are_zeros() {
    let (own, below) = ([1; CLUSTER], [2; CLUSTER]);
    let top = image(6, &[0, 1536, 1], true, &own);
    // It has three clusters, though what is below it has five.
    let middle = image(3, &[1536, 0, 0], true, &below);
    let base = [[3; CLUSTER]; 5].concat();
    let chain = open(vec![(top, ImageFormat::Qcow2), (middle, ImageFormat::Qcow2), (base, ImageFormat::Raw)]).unwrap();
    let expected = [below, own, [0; CLUSTER], [0; CLUSTER], [0; CLUSTER], [0; CLUSTER]].concat();
    assert_eq!(seen(&chain).unwrap(), expected);
    assert_eq!(chain.data_from(0).unwrap(), 0..512);
    assert_eq!(chain.data_from(700).unwrap(), 700..1024);
    assert!(chain.data_from(1024).unwrap().is_empty());
}

#[test]
fn what_was_allocated_and_never_written_is_a_hole() {
    let chain = open(vec![(
        image(4, &[1536, 2048, 2560, 0], false, &[vec![0; 1024], vec![9; 512]].concat()),
        ImageFormat::Qcow2,
    )]);
    let chain = chain.unwrap();
    assert_eq!(chain.data_from(0).unwrap(), 1024..1536);
    // The last cluster of an image need not be whole.
    let cut = image(1, &[1536], false, &[7; 100]);
    let mut expected = vec![7; 100];
    expected.resize(CLUSTER, 0);
    assert_eq!(seen(&open(vec![(cut, ImageFormat::Qcow2)]).unwrap()).unwrap(), expected);
}

#[test]
fn what_no_image_may_have_is_refused_by_name() {
    let why = |layers| match open(layers).and_then(|chain| seen(&chain)) {
        Err(ChainError::Image(layer, why)) => (layer, why),
        other => panic!("{other:?}"),
    };
    let alone = |bytes| vec![(bytes, ImageFormat::Qcow2)];
    let spoiled = |at: usize, bytes: &[u8]| {
        let mut image = image(2, &[1536], false, &[1; CLUSTER]);
        image[at..at + bytes.len()].copy_from_slice(bytes);
        alone(image)
    };
    let field = |what, value| Unreadable::BadField { what, value };
    for (layers, expected) in [
        (spoiled(0, b"RAW"), Unreadable::NotQcow2),
        (spoiled(7, &[4]), Unreadable::NotQcow2),
        (spoiled(103, &[103]), field("length", 103)),
        (spoiled(23, &[8]), field("cluster bits", 8)),
        (spoiled(31, &[1]), field("virtual size", 1025)),
        (spoiled(24, &[0x80]), field("virtual size", 1 << 63 | 0x400)),
        (spoiled(39, &[0]), field("length of the L1 table", 0)),
        (spoiled(36, &[0xff]), field("length of the L1 table", 0xff00_0001)),
        (spoiled(47, &[1]), field("place of the L1 table", 513)),
        (spoiled(79, &[1]), Unreadable::Dirty),
        (spoiled(79, &[2]), Unreadable::Corrupt),
        (spoiled(79, &[4]), Unreadable::ExternalData),
        (spoiled(79, &[8]), Unreadable::Compression),
        (spoiled(79, &[16]), Unreadable::Subclusters),
        (spoiled(79, &[32]), Unreadable::UnknownFeatures(32)),
        (spoiled(35, &[2]), Unreadable::Encrypted),
        (spoiled(15, &[112]), Unreadable::OtherChain),
        (spoiled(518, &[0x40]), Unreadable::TableBeyondEnd { position: 0x4000 }),
    ] {
        assert_eq!(why(layers), (0, expected));
    }
    // Version 2 knows no zero clusters.
    let mut old = image(1, &[1], false, &[]);
    old[7] = 2;
    assert_eq!(why(alone(old)), (0, Unreadable::ZeroCluster));
    let compressed = image(1, &[1 << 62 | 0x600], false, &[0xff; CLUSTER]);
    assert_eq!(why(alone(compressed)), (0, Unreadable::Deflated { position: 1536 }));
    let top = || image(1, &[0], true, &[]);
    assert_eq!(why(vec![(vec![1; 512], ImageFormat::Raw), (top(), ImageFormat::Qcow2)]), (0, Unreadable::RawAbove));
    assert_eq!(why(alone(top())), (0, Unreadable::OtherChain));
    let deep = (0..=LAYERS_MAX).map(|_| (top(), ImageFormat::Qcow2)).collect();
    assert_eq!(why(deep), (LAYERS_MAX, Unreadable::TooManyLayers));
    // What is wrong below is told of the image that has it.
    assert_eq!(why(vec![(top(), ImageFormat::Qcow2), (vec![0; 512], ImageFormat::Qcow2)]), (1, Unreadable::NotQcow2));
}

/// Tables are read by pages that are kept, and no more of them than the bound says.
#[test]
fn tables_are_read_once_and_few_of_them_are_kept() {
    let mut pages = Pages::default();
    let read = std::cell::Cell::new(0);
    let mut entry = |layer, position| {
        let fill = |start: u64, page: &mut [u8]| {
            read.set(read.get() + 1);
            page[..8].copy_from_slice(&start.to_be_bytes());
            Ok::<_, Infallible>(())
        };
        pages.entry(layer, position, fill).unwrap()
    };
    for layer in 0..4 {
        for page in 0..64_u64 {
            assert_eq!(entry(layer, page << 14), page << 14);
        }
    }
    assert_eq!((entry(0, 0), read.get()), (0, 256), "all of these are kept");
    assert_eq!(entry(9, 0), 0);
    assert_eq!((entry(0, 0), read.get()), (0, 257), "what was used last is not what gave way");
    entry(0, 1 << 14);
    assert_eq!(read.get(), 258, "what was not used for longest is");
}
