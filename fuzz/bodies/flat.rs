/// An image in memory, all of it data.
struct InMemory<'a>(&'a [u8]);

impl kvm_clone_agent::flat::LayerFile for InMemory<'_> {
    type Error = std::convert::Infallible;

    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, position: u64, bytes: &mut [u8]) -> Result<(), Self::Error> {
        let start = usize::try_from(position).expect("within the image");
        bytes.copy_from_slice(&self.0[start..start + bytes.len()]);
        Ok(())
    }

    fn data_from(&self, position: u64) -> Result<std::ops::Range<u64>, Self::Error> {
        let end = self.bytes();
        Ok(if position < end { position..end } else { u64::MAX..u64::MAX })
    }
}

/// What is looked at of a chain, in bytes: a few of them can say that there are 2^60.
const LOOKED_AT_BYTES_MAX: u64 = 4 << 20;

/// Reads any bytes as a chain: the lengths of up to three upper images, each as two bytes of 16 and a format, then their bytes.
pub fn read_flat(data: &[u8]) {
    use kvm_clone_agent::flat::Chain;

    let Some((head, mut rest)) = data.split_first_chunk::<8>() else { return };
    let format = |bit: u8| if head[7] >> bit & 1 == 1 { journal_format::ImageFormat::Raw } else { journal_format::ImageFormat::Qcow2 };
    let mut layers = Vec::new();
    for layer in 0..head[6] % 4 {
        let length = u16::from_le_bytes([head[usize::from(layer) * 2], head[usize::from(layer) * 2 + 1]]);
        let (bytes, behind) = rest.split_at((usize::from(length) * 16).min(rest.len()));
        layers.push((InMemory(bytes), format(layer)));
        rest = behind;
    }
    layers.push((InMemory(rest), format(7)));
    if let Ok(chain) = Chain::open(layers) {
        agrees_with_itself(&chain);
    }
}

/// What is read at once is what is read in pieces, and what is said to be a hole is zero.
fn agrees_with_itself<F: kvm_clone_agent::flat::LayerFile>(chain: &kvm_clone_agent::flat::Chain<F>) {
    let end = chain.bytes().min(LOOKED_AT_BYTES_MAX);
    let mut whole = vec![0xff; usize::try_from(end).expect("a few MiB")];
    let is_whole = chain.read(0, &mut whole).is_ok();
    for (piece, expected) in whole.chunks(7919).enumerate() {
        let mut read = vec![0xee; expected.len()];
        if chain.read(piece as u64 * 7919, &mut read).is_ok() && is_whole {
            assert!(read == expected, "piece {piece} is another one than in the whole");
        }
    }
    let mut position = 0;
    while position < end {
        let Ok(data) = chain.data_from(position) else { return };
        assert!(data.start >= position, "{data:?} lies before {position}");
        if is_whole {
            let hole = usize::try_from(position).expect("a few MiB")..usize::try_from(data.start.min(end)).expect("a few MiB");
            assert!(whole[hole].iter().all(|byte| *byte == 0), "no hole lies between {position} and {data:?}");
        }
        assert!(data.is_empty() || data.end > position, "{data:?} leads nowhere");
        position = data.end;
    }
    let mut beyond = [0xff; 64];
    if chain.read(chain.bytes(), &mut beyond).is_ok() {
        assert_eq!(beyond, [0; 64]);
    }
}
