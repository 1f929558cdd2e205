/// Reads any bytes as the words of a command line, one a line, each as everything that a word can be.
pub fn read_request(data: &[u8]) {
    use kvm_clone::domain::DomainName;
    use kvm_clone::host::Address;
    use kvm_clone::request::{ByteRate, ChunkSize, NetworkMapping, Request, Target, VmSelector};

    let Ok(text) = std::str::from_utf8(data) else { return };
    let words: Vec<&str> = text.split('\n').collect();
    let mut request = None;
    if let [source, destination, vm, ..] = words[..]
        && let (Ok(source), Ok(destination), Ok(vm)) = (source.parse(), destination.parse(), vm.parse())
    {
        request = Some(Request::new(source, destination, vm));
    }
    for word in &words {
        if let Ok(address) = word.parse::<Address>() {
            assert_eq!(address.as_str().parse::<Address>(), Ok(address));
        }
        if let Ok(name) = DomainName::new(word) {
            assert!(!word.contains('/') && name.as_str() == *word);
            let _ = DomainName::clone_of(word);
        }
        if let Ok(vm) = word.parse::<VmSelector>() {
            assert_eq!(vm.to_string().parse(), Ok(vm));
        }
        let _ = Target::pool(word);
        if let Ok(Target::Directory(directory)) = Target::directory(word) {
            assert_eq!(Target::directory(&directory), Ok(Target::Directory(directory)));
        }
        if let Ok(rate) = word.parse::<ByteRate>() {
            assert!(rate.bytes_per_second() > 0 && !rate.to_string().is_empty());
        }
        if let Ok(size) = word.parse::<ChunkSize>() {
            assert!(size.bytes().is_power_of_two());
        }
        if let (Ok(mapping), Some(request)) = (word.parse::<NetworkMapping>(), &mut request) {
            request.network_map.push(mapping);
        }
    }
    if let Some(request) = request {
        let _ = request.check();
    }
}
