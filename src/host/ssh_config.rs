//! What `~/.ssh/config` makes of an alias: the keywords that kvm-clone honours, read as OpenSSH reads them.
//!
//! The first value wins, `IdentityFile` adds up, `Include` is followed. What would change how the host is reached and is
//! not supported (a jump host, a proxy command, a `Match` that cannot be decided) is refused by name, never left out.
//! The system's `/etc/ssh/ssh_config` is not read.

use std::path::{Path, PathBuf};

use super::address::SshTarget;
use super::pattern;

/// Files that include files: how deep, at most (OpenSSH's own bound).
const INCLUDE_DEPTH_MAX: usize = 16;
/// Included files that are read in all, at most: where each of a few includes the next one twice, the number doubles.
const INCLUDED_FILES_MAX: usize = 1024;
/// Bytes of one configuration file, at most.
const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
/// Key files that are tried where nobody names one, in `~/.ssh`.
const DEFAULT_KEY_FILES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];
/// The port where nobody names one.
const SSH_PORT: u16 = 22;

/// How a host is reached over ssh, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSettings {
    /// Host name or address to connect to.
    pub host_name: String,
    /// TCP port.
    pub port: u16,
    /// User to log in as.
    pub user: String,
    /// The name under which the host's key is looked up in the known hosts.
    pub host_key_name: String,
    /// Private key files that were named for this host, in order.
    pub identity_files: Vec<PathBuf>,
    /// Only keys of those files are offered.
    pub identities_only: bool,
    /// Socket of the ssh-agent; `None`: none is asked.
    pub agent_socket: Option<PathBuf>,
    /// Files of known host keys; the first one is where a person would add a key.
    pub known_hosts_files: Vec<PathBuf>,
    /// Private key files that are tried where none was named.
    pub default_identity_files: Vec<PathBuf>,
}

/// Where the configuration, and what it names, is found.
#[derive(Debug, Clone)]
pub struct SshSurroundings {
    /// The configuration file; missing is fine.
    pub config_file: PathBuf,
    /// The user's home directory.
    pub home: PathBuf,
    /// The user's name.
    pub user: String,
    /// `SSH_AUTH_SOCK`.
    pub agent_socket: Option<PathBuf>,
}

/// Why the configuration gives no way to the host.
#[derive(Debug, thiserror::Error)]
pub enum SshConfigError {
    /// A file could not be read.
    #[error("cannot read the ssh configuration {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line that OpenSSH would not take either.
    #[error("{path} line {line}: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// A keyword that applies to the host and cannot be honoured.
    #[error(
        "{path} line {line}: `{keyword}` applies to `{host}`, and kvm-clone does not support it; \
         give the host's own address, or another configuration file by KVM_CLONE_SSH_CONFIG"
    )]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// The keyword, as it stands there.
        keyword: String,
        /// The alias.
        host: String,
    },
}

/// Everything the configuration says about a host, with defaults for what it leaves open.
pub fn look_up(target: &SshTarget, surroundings: &SshSurroundings) -> Result<SshSettings, SshConfigError> {
    let mut found = Found::default();
    if surroundings.config_file.exists() {
        let mut reader = Reader { host: &target.host, surroundings, found: &mut found, included_files: 0 };
        reader.file(&surroundings.config_file, true, 0)?;
    }
    let user = target.user.clone().or(found.user).unwrap_or_else(|| surroundings.user.clone());
    let port = target.port.or(found.port).unwrap_or(SSH_PORT);
    let alias = target.host.as_str();
    let host_name = match found.host_name {
        Some(entry) => expand(&entry, &Tokens { alias, host_name: alias, port, user: &user, surroundings })?,
        None => target.host.clone(),
    };
    let tokens = Tokens { alias, host_name: &host_name, port, user: &user, surroundings };
    let paths =
        |entries: &[Entry]| entries.iter().map(|entry| expand_path(entry, &tokens)).collect::<Result<Vec<_>, _>>();
    let named_known_hosts = paths(&found.user_known_hosts)?;
    let global_known_hosts = paths(&found.global_known_hosts)?;
    let mut known_hosts_files = if found.user_known_hosts.is_empty() {
        vec![surroundings.home.join(".ssh/known_hosts"), surroundings.home.join(".ssh/known_hosts2")]
    } else {
        named_known_hosts
    };
    if found.global_known_hosts.is_empty() {
        known_hosts_files.extend(["/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"].map(PathBuf::from));
    } else {
        known_hosts_files.extend(global_known_hosts);
    }
    known_hosts_files.retain(|file| file != Path::new("none"));
    let agent_socket = match &found.identity_agent {
        None => surroundings.agent_socket.clone(),
        Some(entry) => match entry.value.as_str() {
            "none" => None,
            "SSH_AUTH_SOCK" | "$SSH_AUTH_SOCK" => surroundings.agent_socket.clone(),
            _ => Some(expand_path(entry, &tokens)?),
        },
    };
    let identity_files = paths(&found.identity_files)?;
    Ok(SshSettings {
        host_key_name: found.host_key_alias.unwrap_or_else(|| host_name.clone()),
        identity_files: identity_files.into_iter().filter(|file| file != Path::new("none")).collect(),
        identities_only: found.identities_only.unwrap_or(false),
        host_name,
        port,
        user,
        agent_socket,
        known_hosts_files,
        default_identity_files: DEFAULT_KEY_FILES.map(|name| surroundings.home.join(".ssh").join(name)).into(),
    })
}

/// A value and where it stands, for messages about it.
#[derive(Debug, Clone)]
struct Entry {
    value: String,
    path: PathBuf,
    line: usize,
    keyword: String,
}

#[derive(Debug, Default)]
struct Found {
    host_name: Option<Entry>,
    user: Option<String>,
    port: Option<u16>,
    host_key_alias: Option<String>,
    identity_files: Vec<Entry>,
    identities_only: Option<bool>,
    identity_agent: Option<Entry>,
    user_known_hosts: Vec<Entry>,
    global_known_hosts: Vec<Entry>,
    proxy_decided: bool,
}

/// Does a line of the file apply to the host?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Applies,
    Other,
    /// A `Match` whose criteria cannot be decided here.
    Undecidable,
}

struct Reader<'a> {
    host: &'a str,
    surroundings: &'a SshSurroundings,
    found: &'a mut Found,
    included_files: usize,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, applies: bool, depth: usize) -> Result<(), SshConfigError> {
        let text = read_bounded(path)?;
        let outer = if applies { Scope::Applies } else { Scope::Other };
        let mut scope = outer;
        for (index, line) in text.lines().enumerate() {
            let at = Place { path, line: index + 1 };
            let Some((keyword, arguments)) = split_line(line).map_err(|what| at.malformed(what))? else { continue };
            match keyword.to_ascii_lowercase().as_str() {
                // Inside a file that is included under a `Host` that does not apply, nothing applies.
                "host" | "match" if outer == Scope::Other => {}
                "host" => scope = scope_if(pattern::list_matches(arguments.iter().map(String::as_str), self.host)),
                "match" => scope = self.match_scope(&arguments),
                "include" => self.include(&at, &keyword, scope, &arguments, depth)?,
                name => self.keyword(&at, &keyword, name, scope, &arguments)?,
            }
        }
        Ok(())
    }

    fn match_scope(&self, arguments: &[String]) -> Scope {
        match arguments {
            [all] if all.eq_ignore_ascii_case("all") => Scope::Applies,
            [criterion, hosts] if criterion.eq_ignore_ascii_case("originalhost") => {
                scope_if(pattern::list_matches(hosts.split(','), self.host))
            }
            _ => Scope::Undecidable,
        }
    }

    fn include(
        &mut self,
        at: &Place<'_>,
        keyword: &str,
        scope: Scope,
        arguments: &[String],
        depth: usize,
    ) -> Result<(), SshConfigError> {
        if scope == Scope::Undecidable {
            return Err(at.unsupported(keyword, self.host));
        }
        if depth >= INCLUDE_DEPTH_MAX {
            return Err(at.malformed(format!("files include each other more than {INCLUDE_DEPTH_MAX} deep")));
        }
        for argument in arguments {
            let path = match argument.strip_prefix("~/") {
                Some(rest) => self.surroundings.home.join(rest),
                // An absolute path replaces what it is joined to.
                None => self.surroundings.home.join(".ssh").join(argument),
            };
            for file in
                included_files(&path).map_err(|()| at.unsupported(&format!("{keyword} {argument}"), self.host))?
            {
                self.included_files += 1;
                if self.included_files > INCLUDED_FILES_MAX {
                    return Err(at.malformed(format!("more than {INCLUDED_FILES_MAX} files are included")));
                }
                self.file(&file, scope == Scope::Applies, depth + 1)?;
            }
        }
        Ok(())
    }

    fn keyword(
        &mut self,
        at: &Place<'_>,
        keyword: &str,
        name: &str,
        scope: Scope,
        arguments: &[String],
    ) -> Result<(), SshConfigError> {
        const HONOURED: [&str; 11] = [
            "hostname",
            "user",
            "port",
            "hostkeyalias",
            "identityfile",
            "identitiesonly",
            "identityagent",
            "userknownhostsfile",
            "globalknownhostsfile",
            "proxyjump",
            "proxycommand",
        ];
        if scope == Scope::Other || !HONOURED.contains(&name) {
            return Ok(());
        }
        if scope == Scope::Undecidable {
            return Err(at.unsupported(&format!("Match … {keyword}"), self.host));
        }
        let Some(first) = arguments.first() else {
            return Err(at.malformed(format!("`{keyword}` has no value")));
        };
        let entry = |value: &String| Entry {
            value: value.clone(),
            path: at.path.to_owned(),
            line: at.line,
            keyword: keyword.to_owned(),
        };
        let found = &mut *self.found;
        match name {
            "hostname" => drop(found.host_name.get_or_insert_with(|| entry(first)).clone()),
            "user" => drop(found.user.get_or_insert_with(|| first.clone()).clone()),
            "port" => {
                let port = first.parse().ok().filter(|port| *port != 0);
                let port = port.ok_or_else(|| at.malformed(format!("`{first}` is no port")))?;
                found.port.get_or_insert(port);
            }
            "hostkeyalias" => drop(found.host_key_alias.get_or_insert_with(|| first.clone()).clone()),
            "identityfile" => found.identity_files.push(entry(first)),
            "identitiesonly" => {
                found.identities_only.get_or_insert(first.eq_ignore_ascii_case("yes") || first == "true");
            }
            "identityagent" => drop(found.identity_agent.get_or_insert_with(|| entry(first)).clone()),
            "userknownhostsfile" if found.user_known_hosts.is_empty() => {
                found.user_known_hosts = arguments.iter().map(entry).collect();
            }
            "globalknownhostsfile" if found.global_known_hosts.is_empty() => {
                found.global_known_hosts = arguments.iter().map(entry).collect();
            }
            "proxyjump" | "proxycommand" if !found.proxy_decided => {
                if !first.eq_ignore_ascii_case("none") {
                    return Err(at.unsupported(keyword, self.host));
                }
                found.proxy_decided = true;
            }
            _ => {}
        }
        Ok(())
    }
}

struct Place<'a> {
    path: &'a Path,
    line: usize,
}

impl Place<'_> {
    fn malformed(&self, what: String) -> SshConfigError {
        SshConfigError::Malformed { path: self.path.to_owned(), line: self.line, what }
    }

    fn unsupported(&self, keyword: &str, host: &str) -> SshConfigError {
        SshConfigError::Unsupported {
            path: self.path.to_owned(),
            line: self.line,
            keyword: keyword.to_owned(),
            host: host.to_owned(),
        }
    }
}

fn scope_if(applies: bool) -> Scope {
    if applies { Scope::Applies } else { Scope::Other }
}

fn read_bounded(path: &Path) -> Result<String, SshConfigError> {
    use std::io::Read;
    let unreadable = |source| SshConfigError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(unreadable(std::io::Error::new(std::io::ErrorKind::InvalidData, "larger than 1 MiB")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Keyword and arguments of a line; `None` for a comment or an empty line.
fn split_line(line: &str) -> Result<Option<(String, Vec<String>)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c.is_whitespace() || c == '=').unwrap_or(line.len());
    let (keyword, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    Ok(Some((keyword.to_owned(), split_arguments(rest)?)))
}

fn split_arguments(rest: &str) -> Result<Vec<String>, String> {
    let mut arguments = Vec::new();
    let mut characters = rest.chars().peekable();
    while let Some(first) = characters.peek().copied() {
        if first.is_whitespace() {
            characters.next();
            continue;
        }
        if first == '#' {
            break;
        }
        let mut argument = String::new();
        let mut quoted = false;
        while let Some(c) = characters.next_if(|c| quoted || !c.is_whitespace()) {
            if c == '"' {
                quoted = !quoted;
            } else {
                argument.push(c);
            }
        }
        if quoted {
            return Err("a quotation mark is not closed".into());
        }
        arguments.push(argument);
    }
    Ok(arguments)
}

/// The files that an `Include` names, sorted. Wildcards are known in the last component only.
fn included_files(path: &Path) -> Result<Vec<PathBuf>, ()> {
    let wild = |text: &str| text.contains(['*', '?', '[']);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(());
    };
    if wild(&parent.to_string_lossy()) || name.contains('[') {
        return Err(());
    }
    if !wild(name) {
        return Ok(if path.exists() { vec![path.to_owned()] } else { Vec::new() });
    }
    let Ok(entries) = std::fs::read_dir(parent) else { return Ok(Vec::new()) };
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let entry = entry.file_name();
            entry.to_str().is_some_and(|entry| !entry.starts_with('.') && pattern::matches(name, entry))
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

/// What `%` sequences stand for.
struct Tokens<'a> {
    alias: &'a str,
    host_name: &'a str,
    port: u16,
    user: &'a str,
    surroundings: &'a SshSurroundings,
}

fn expand(entry: &Entry, tokens: &Tokens<'_>) -> Result<String, SshConfigError> {
    let at = Place { path: &entry.path, line: entry.line };
    let mut out = String::new();
    let mut characters = entry.value.chars();
    while let Some(c) = characters.next() {
        match c {
            '%' => match characters.next() {
                Some('%') => out.push('%'),
                Some('h') => out.push_str(tokens.host_name),
                Some('n') => out.push_str(tokens.alias),
                Some('p') => out.push_str(&tokens.port.to_string()),
                Some('r') => out.push_str(tokens.user),
                Some('u') => out.push_str(&tokens.surroundings.user),
                Some('d') => out.push_str(&tokens.surroundings.home.to_string_lossy()),
                _ => return Err(at.unsupported(&format!("{} {}", entry.keyword, entry.value), tokens.alias)),
            },
            '$' => return Err(at.unsupported(&format!("{} {}", entry.keyword, entry.value), tokens.alias)),
            c => out.push(c),
        }
    }
    Ok(out)
}

fn expand_path(entry: &Entry, tokens: &Tokens<'_>) -> Result<PathBuf, SshConfigError> {
    let text = expand(entry, tokens)?;
    Ok(match text.strip_prefix("~/") {
        Some(rest) => tokens.surroundings.home.join(rest),
        None => PathBuf::from(text),
    })
}

#[cfg(test)]
#[path = "ssh_config_tests.rs"]
mod tests;
