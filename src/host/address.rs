//! How a person names a host: `local`, `[user@]host[:port]`, `ssh://[user@]host[:port]`, or an alias of `~/.ssh/config`.
//!
//! Pure: parsing contacts nobody and reads no file. Whatever cannot be a host's name is refused here, by name.

use std::fmt;
use std::str::FromStr;

/// A host as a person named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    text: String,
    target: Target,
}

/// What an address leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The machine that kvm-clone runs on.
    Local,
    /// A machine reached over ssh.
    Ssh(SshTarget),
}

/// A machine reached over ssh. What is `None` comes from the ssh configuration, else from ssh's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SshTarget {
    /// The user to log in as.
    pub user: Option<String>,
    /// Host name, alias, IPv4 address, or IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: Option<u16>,
}

/// Why a text is no host address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing is there.
    #[error("the host address is empty; write `local`, `user@host`, `user@host:port` or an alias of ~/.ssh/config")]
    Empty,
    /// A part is missing.
    #[error("host address `{text}`: the {part} is empty; write `[user@]host[:port]`")]
    MissingPart {
        /// The address.
        text: String,
        /// Which part.
        part: &'static str,
    },
    /// A character that no name of a host or user has.
    #[error("host address {text:?}: the {part} must not contain {character:?}")]
    BadCharacter {
        /// The address.
        text: String,
        /// Which part.
        part: &'static str,
        /// The character.
        character: char,
    },
    /// A name that begins with `-`.
    #[error("host address `{text}`: the {part} must not begin with `-`")]
    LeadingDash {
        /// The address.
        text: String,
        /// Which part.
        part: &'static str,
    },
    /// The port is no number from 1 to 65535.
    #[error("host address `{text}`: `{port}` is no port; a port is a number from 1 to 65535")]
    BadPort {
        /// The address.
        text: String,
        /// What stands in the port's place.
        port: String,
    },
    /// An IPv6 address without brackets, or brackets around something else.
    #[error("host address `{text}`: write an IPv6 address in brackets, such as `root@[2001:db8::1]:22`")]
    BadIpv6 {
        /// The address.
        text: String,
    },
    /// A scheme other than `ssh`.
    #[error("host address `{text}`: only `ssh://` addresses are known, not `{scheme}://`")]
    UnknownScheme {
        /// The address.
        text: String,
        /// The scheme.
        scheme: String,
    },
    /// A password, a path or a query in an `ssh://` address.
    #[error("host address `{text}`: an ssh address is `ssh://[user@]host[:port]`, without {what}")]
    NotAnAddress {
        /// The address, without the password.
        text: String,
        /// What is too much.
        what: &'static str,
    },
}

impl Address {
    /// Exactly what was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it leads to.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        let target = if text == "local" { Target::Local } else { Target::Ssh(parse_ssh(text)?) };
        Ok(Self { text: text.to_owned(), target })
    }
}

fn parse_ssh(text: &str) -> Result<SshTarget, AddressError> {
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ssh") => rest.strip_suffix('/').unwrap_or(rest),
        Some((scheme, _)) => {
            return Err(AddressError::UnknownScheme { text: text.to_owned(), scheme: scheme.to_owned() });
        }
        None => text,
    };
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, rest),
    };
    if let Some(user) = user {
        if user.contains(':') {
            // The text may hold a password: it is not repeated.
            return Err(AddressError::NotAnAddress { text: format!("…@{place}"), what: "a password" });
        }
        check_name(text, "user", user)?;
    }
    if place.contains(['/', '?', '#']) {
        return Err(AddressError::NotAnAddress { text: text.to_owned(), what: "a path" });
    }
    let (host, port) = split_port(text, place)?;
    Ok(SshTarget { user: user.map(str::to_owned), host, port })
}

fn split_port(text: &str, place: &str) -> Result<(String, Option<u16>), AddressError> {
    let bad_ipv6 = || AddressError::BadIpv6 { text: text.to_owned() };
    let (host, port) = if let Some(inner) = place.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or_else(bad_ipv6)?;
        let (ip, zone) = host.split_once('%').map_or((host, None), |(ip, zone)| (ip, Some(zone)));
        if ip.parse::<std::net::Ipv6Addr>().is_err() || zone == Some("") {
            return Err(bad_ipv6());
        }
        if let Some(zone) = zone {
            check_name(text, "zone", zone)?;
        }
        let port = match after {
            "" => None,
            _ => Some(after.strip_prefix(':').ok_or_else(bad_ipv6)?),
        };
        (host, port)
    } else {
        let (host, port) = match place.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err(bad_ipv6()),
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        };
        check_name(text, "host", host)?;
        (host, port)
    };
    let port = port.map(|port| parse_port(text, port)).transpose()?;
    Ok((host.to_owned(), port))
}

fn parse_port(text: &str, port: &str) -> Result<u16, AddressError> {
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number) if digits && number > 0 => Ok(number),
        _ => Err(AddressError::BadPort { text: text.to_owned(), port: port.to_owned() }),
    }
}

fn check_name(text: &str, part: &'static str, name: &str) -> Result<(), AddressError> {
    if name.is_empty() {
        return Err(AddressError::MissingPart { text: text.to_owned(), part });
    }
    if name.starts_with('-') {
        return Err(AddressError::LeadingDash { text: text.to_owned(), part });
    }
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || "/\\@[]%*?!,;'\"`$&|<>(){}".contains(c);
    match name.chars().find(|c| forbidden(*c)) {
        Some(character) => Err(AddressError::BadCharacter { text: text.to_owned(), part, character }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ssh(user: Option<&str>, host: &str, port: Option<u16>) -> Target {
        Target::Ssh(SshTarget { user: user.map(str::to_owned), host: host.to_owned(), port })
    }

    #[test]
    fn every_form_is_understood() {
        let cases = [
            ("local", Target::Local),
            ("web01", ssh(None, "web01", None)),
            ("root@web01", ssh(Some("root"), "web01", None)),
            ("root@web01:2222", ssh(Some("root"), "web01", Some(2222))),
            ("ssh://root@web01:2222", ssh(Some("root"), "web01", Some(2222))),
            ("ssh://web01/", ssh(None, "web01", None)),
            ("ssh://local", ssh(None, "local", None)),
            ("10.0.0.1:22", ssh(None, "10.0.0.1", Some(22))),
            ("[::1]", ssh(None, "::1", None)),
            ("[fe80::1%eth0]:22", ssh(None, "fe80::1%eth0", Some(22))),
            ("me@[2001:db8::1]:1022", ssh(Some("me"), "2001:db8::1", Some(1022))),
        ];
        for (text, target) in cases {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.target(), &target, "{text}");
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn bad_input_is_refused_by_name() {
        let parse = |text: &str| text.parse::<Address>().unwrap_err();
        assert_eq!(parse(""), AddressError::Empty);
        assert!(matches!(parse("@web"), AddressError::MissingPart { part: "user", .. }));
        assert!(matches!(parse("root@"), AddressError::MissingPart { part: "host", .. }));
        assert!(matches!(parse("ssh://"), AddressError::MissingPart { part: "host", .. }));
        assert!(matches!(parse(":22"), AddressError::MissingPart { part: "host", .. }));
        assert!(matches!(parse("-oProxyCommand=x"), AddressError::LeadingDash { part: "host", .. }));
        assert!(matches!(parse("-x@web"), AddressError::LeadingDash { part: "user", .. }));
        assert!(matches!(parse("web 1"), AddressError::BadCharacter { character: ' ', .. }));
        assert!(matches!(parse("web\n1"), AddressError::BadCharacter { character: '\n', .. }));
        assert!(matches!(parse("we*"), AddressError::BadCharacter { character: '*', .. }));
        for port in ["0", "65536", "x", "", "+22"] {
            assert!(matches!(parse(&format!("web:{port}")), AddressError::BadPort { .. }), "{port}");
        }
        assert!(matches!(parse("fe80::1"), AddressError::BadIpv6 { .. }));
        assert!(matches!(parse("[web]"), AddressError::BadIpv6 { .. }));
        assert!(matches!(parse("[::1]22"), AddressError::BadIpv6 { .. }));
        assert!(matches!(parse("[::1"), AddressError::BadIpv6 { .. }));
        assert!(matches!(parse("http://web"), AddressError::UnknownScheme { .. }));
        assert!(matches!(parse("ssh://web/path"), AddressError::NotAnAddress { what: "a path", .. }));
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        let error = "ssh://root:secret@web".parse::<Address>().unwrap_err();
        assert!(matches!(error, AddressError::NotAnAddress { what: "a password", .. }));
        assert!(!error.to_string().contains("secret"));
    }
}
