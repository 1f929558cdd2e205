/// Reads any bytes as each of libvirt's documents of which single facts are read.
pub fn read_libvirt_xml(data: &[u8]) {
    use kvm_clone::domain::documents::{PoolDocument, emulator, name_and_uuid};

    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(pool) = PoolDocument::parse(text) {
        assert!(pool.kind.len() <= text.len() && pool.path.is_none_or(|path| path.len() <= text.len()));
    }
    let (name, _) = name_and_uuid(text);
    assert!(name.is_none_or(|name| name.trim() == name));
    assert!(emulator(text).is_none_or(|path| path.starts_with('/')));
}
