#![allow(clippy::unwrap_used)]
use super::*;

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn with(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join(".ssh")).unwrap();
        std::fs::write(directory.path().join(".ssh/config"), config).unwrap();
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn look_up(&self, host: &str) -> Result<SshSettings, SshConfigError> {
        self.look_up_target(&SshTarget { user: None, host: host.into(), port: None })
    }

    fn look_up_target(&self, target: &SshTarget) -> Result<SshSettings, SshConfigError> {
        let surroundings = SshSurroundings {
            config_file: self.path().join(".ssh/config"),
            home: self.path().to_owned(),
            user: "me".into(),
            agent_socket: Some("/run/agent".into()),
        };
        look_up(target, &surroundings)
    }
}

#[test]
fn without_a_configuration_the_defaults_hold() {
    let home = Home::with("");
    std::fs::remove_file(home.path().join(".ssh/config")).unwrap();
    let settings = home.look_up("web").unwrap();
    assert_eq!((settings.host_name.as_str(), settings.port, settings.user.as_str()), ("web", 22, "me"));
    assert_eq!(settings.host_key_name, "web");
    assert!(settings.identity_files.is_empty());
    assert_eq!(settings.agent_socket, Some("/run/agent".into()));
    assert_eq!(settings.known_hosts_files[0], home.path().join(".ssh/known_hosts"));
}

#[test]
fn the_first_value_wins_and_identity_files_add_up() {
    let home = Home::with(
        "# a comment\nHost web !webx\n  HostName 10.0.0.7\n  User=admin\n\tPort 2222\n  IdentityFile ~/.ssh/web\n\n\
         Host *\n  User nobody\n  IdentityFile \"/keys/with space\"\n  UserKnownHostsFile /a /b\n",
    );
    let settings = home.look_up("web").unwrap();
    assert_eq!(settings.host_name, "10.0.0.7");
    assert_eq!(settings.host_key_name, "10.0.0.7");
    assert_eq!((settings.user.as_str(), settings.port), ("admin", 2222));
    assert_eq!(settings.identity_files, [home.path().join(".ssh/web"), "/keys/with space".into()]);
    assert_eq!(settings.known_hosts_files[..2], [PathBuf::from("/a"), "/b".into()]);
    assert_eq!(home.look_up("other").unwrap().user, "nobody");
}

#[test]
fn the_command_line_wins_over_the_configuration() {
    let home = Home::with("Host web\n User admin\n Port 2222\n");
    let target = SshTarget { user: Some("root".into()), host: "web".into(), port: Some(22) };
    let settings = home.look_up_target(&target).unwrap();
    assert_eq!((settings.user.as_str(), settings.port), ("root", 22));
}

#[test]
fn tokens_are_expanded_and_unknown_ones_refused() {
    let home = Home::with("Host web\n HostName %h.example.org\n IdentityFile %d/keys/%r@%h-%n-%p\n");
    let settings = home.look_up("web").unwrap();
    assert_eq!(settings.host_name, "web.example.org");
    assert_eq!(settings.identity_files, [home.path().join("keys/me@web.example.org-web-22")]);
    let home = Home::with("IdentityFile ~/%C\n");
    assert!(matches!(home.look_up("web").unwrap_err(), SshConfigError::Unsupported { line: 1, .. }));
}

#[test]
fn a_jump_host_is_refused_by_name_where_it_applies() {
    let home = Home::with("Host far\n ProxyJump gate\nHost near\n ProxyJump none\nHost odd\n ProxyCommand nc %h %p\n");
    let error = home.look_up("far").unwrap_err();
    assert!(matches!(&error, SshConfigError::Unsupported { line: 2, keyword, .. } if keyword == "ProxyJump"));
    assert!(error.to_string().contains("far"));
    assert!(home.look_up("near").is_ok());
    assert!(home.look_up("other").is_ok());
    assert!(matches!(home.look_up("odd").unwrap_err(), SshConfigError::Unsupported { line: 6, .. }));
}

#[test]
fn includes_are_followed_within_their_scope() {
    let home = Home::with("Host inner\n Include one\nHost *\nInclude conf.d/*.conf\nUser last\n");
    std::fs::write(home.path().join(".ssh/one"), "Port 99\nHost other\n Port 98\n").unwrap();
    std::fs::create_dir(home.path().join(".ssh/conf.d")).unwrap();
    std::fs::write(home.path().join(".ssh/conf.d/a.conf"), "Host web\n User first\n").unwrap();
    std::fs::write(home.path().join(".ssh/conf.d/ignored"), "User wrong\n").unwrap();
    assert_eq!(home.look_up("inner").unwrap().port, 99);
    assert_eq!(home.look_up("other").unwrap().port, 22);
    assert_eq!(home.look_up("web").unwrap().user, "first");
    assert_eq!(home.look_up("other").unwrap().user, "last");
}

#[test]
fn endless_includes_end() {
    let home = Home::with("Include config\n");
    assert!(matches!(home.look_up("web").unwrap_err(), SshConfigError::Malformed { .. }));
}

#[test]
fn includes_that_multiply_end() {
    let home = Home::with("Include 0 0");
    for number in 0..14 {
        std::fs::write(home.path().join(format!(".ssh/{number}")), format!("Include {0} {0}", number + 1)).unwrap();
    }
    assert!(home.look_up("web").unwrap_err().to_string().contains("more than 1024 files"));
}

#[test]
fn a_match_that_cannot_be_decided_is_refused_only_where_it_matters() {
    let home = Home::with("Match exec true\n ForwardX11 yes\n");
    assert!(home.look_up("web").is_ok());
    let home = Home::with("Match exec true\n User x\n");
    assert!(matches!(home.look_up("web").unwrap_err(), SshConfigError::Unsupported { line: 2, .. }));
    let home = Home::with("Match originalhost web,db\n User x\nMatch all\n Port 5\n");
    assert_eq!(home.look_up("db").unwrap().user, "x");
    assert_eq!(home.look_up("else").unwrap().user, "me");
    assert_eq!(home.look_up("else").unwrap().port, 5);
}

#[test]
fn malformed_lines_are_named() {
    for config in ["Port x", "Port", "HostName \"open"] {
        assert!(matches!(Home::with(config).look_up("web").unwrap_err(), SshConfigError::Malformed { line: 1, .. }));
    }
}

#[test]
fn the_agent_may_be_another_or_none() {
    assert_eq!(Home::with("IdentityAgent none\n").look_up("web").unwrap().agent_socket, None);
    assert_eq!(Home::with("IdentityAgent /x\n").look_up("web").unwrap().agent_socket, Some("/x".into()));
    assert!(Home::with("IdentitiesOnly yes\n").look_up("web").unwrap().identities_only);
}
