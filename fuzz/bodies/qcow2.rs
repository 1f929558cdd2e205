/// Reads any bytes as the beginning of a qcow2 image.
pub fn read_qcow2(data: &[u8]) {
    use kvm_clone::domain::{qcow2::Header, uncarried_image};

    if let Ok(header) = Header::read(data) {
        assert!(header.version == 2 || header.version == 3);
        uncarried_image("vda", &header);
    }
}
