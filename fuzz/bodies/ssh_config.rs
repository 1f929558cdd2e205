/// Reads any bytes as a host's address (the first line) and an ssh configuration (the rest).
pub fn read_ssh_config(data: &[u8], home: &std::path::Path) {
    use kvm_clone::host::{Address, SshSurroundings, Target, look_up};

    let (first, config) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let Ok(text) = std::str::from_utf8(first) else { return };
    let Ok(address) = text.parse::<Address>() else { return };
    assert_eq!(address.as_str().parse::<Address>().as_ref(), Ok(&address));
    let Target::Ssh(target) = address.target() else { return };
    let config_file = home.join("config");
    std::fs::write(&config_file, config).expect("the file is ours");
    let surroundings =
        SshSurroundings { config_file, home: home.to_owned(), user: "me".into(), agent_socket: Some("/agent".into()) };
    if let Ok(settings) = look_up(target, &surroundings) {
        assert!(settings.port > 0);
        assert!(target.port.is_none_or(|port| port == settings.port), "the address outranks the configuration");
        assert!(target.user.as_ref().is_none_or(|user| *user == settings.user));
    }
}
