//! Logging in by public key: the file that the user named, files of the ssh configuration, the ssh-agent, ssh's default files.
//!
//! A key that the user named is the only one that is offered. Files that others could read are refused as OpenSSH does.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, decode_secret_key};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{KeyJudge, SshError};
use crate::host::ssh_config::SshSettings;

/// Bytes of a private key file, at most.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// What stands in every private key file: PEM and OpenSSH's own form, or that of `puttygen`.
const PRIVATE_KEY_WORDS: [&str; 2] = ["PRIVATE KEY-----", "PuTTY-User-Key-File-"];
/// How long the ssh-agent may take to list its keys.
const AGENT_SECONDS_MAX: u64 = 5;

type SshAgent = AgentClient<UnixStream>;

/// A key that may be offered.
enum Candidate {
    /// Of a file.
    File { path: PathBuf, key: Arc<PrivateKey> },
    /// Only the ssh-agent can sign with it.
    Agent { name: String, key: PublicKey },
}

/// A key file that gives no usable key by itself.
enum KeyFileProblem {
    Missing,
    /// Only with a passphrase, or a token: the ssh-agent may have it.
    Locked(Option<Box<PublicKey>>),
    Bad(String),
}

pub(super) async fn log_in(
    handle: &mut Handle<KeyJudge>,
    settings: &SshSettings,
    key_file: Option<&PathBuf>,
) -> Result<(), SshError> {
    let mut agent = Agent::open(settings.agent_socket.as_deref()).await;
    let mut notes = Vec::new();
    let candidates = gather(settings, key_file, &mut agent, &mut notes)?;
    let rsa_hash = handle
        .best_supported_rsa_hash()
        .await
        .map_err(|error| SshError::unreachable(format!("the ssh connection failed: {error}")))?
        .unwrap_or(Some(HashAlg::Sha512));
    let mut accepted_methods = String::new();
    for candidate in candidates {
        let (name, result) = match candidate {
            Candidate::File { path, key } => {
                let result = handle
                    .authenticate_publickey(&settings.user, PrivateKeyWithHashAlg::new(key, rsa_hash))
                    .await
                    .map_err(|error| error.to_string());
                (path.display().to_string(), result)
            }
            Candidate::Agent { name, key } => {
                let Some(client) = agent.client.as_mut() else { continue };
                let hash = if key.algorithm().is_rsa() { rsa_hash } else { None };
                let result = handle
                    .authenticate_publickey_with(&settings.user, key, hash, client)
                    .await
                    .map_err(|error| format!("the ssh-agent did not sign: {error}"));
                (name, result)
            }
        };
        match result {
            Ok(AuthResult::Success) => return Ok(()),
            Ok(AuthResult::Failure { partial_success: true, .. }) => {
                notes.push(format!("{name} was accepted, but the host wants more than a key, which is not supported"));
            }
            Ok(AuthResult::Failure { remaining_methods, .. }) => {
                notes.push(format!("{name} was refused"));
                let methods: Vec<String> = remaining_methods.iter().map(|method| format!("{method:?}")).collect();
                if !methods.is_empty() {
                    accepted_methods = format!(" The host accepts: {}.", methods.join(", ").to_lowercase());
                }
            }
            Err(error) => notes.push(format!("{name}: {error}")),
        }
        if handle.is_closed() {
            notes.push("then the host closed the connection: too many keys? Name the right one with --ssh-key".into());
            break;
        }
    }
    if notes.is_empty() {
        notes.push("there is no key to offer: no ssh-agent with keys, no key file in ~/.ssh".into());
    }
    let user = &settings.user;
    Err(SshError::unusable(format!(
        "cannot log in as {user}: {}.{accepted_methods} Append the public key to ~{user}/.ssh/authorized_keys on the host \
         (ssh-copy-id does it), or name another key with --ssh-key",
        notes.join("; ")
    )))
}

fn gather(
    settings: &SshSettings,
    key_file: Option<&PathBuf>,
    agent: &mut Agent,
    notes: &mut Vec<String>,
) -> Result<Vec<Candidate>, SshError> {
    let mut candidates = Vec::new();
    if let Some(path) = key_file {
        let refuse = |why: String| Err(SshError::unusable(why));
        match load(path) {
            Ok(key) => candidates.push(Candidate::File { path: path.clone(), key }),
            Err(KeyFileProblem::Missing) => return refuse(format!("the key file {} is not there", path.display())),
            Err(KeyFileProblem::Bad(why)) => return refuse(why),
            Err(KeyFileProblem::Locked(public)) => match agent.holding(public.as_deref()) {
                Some(candidate) => candidates.push(candidate),
                None => return refuse(locked(path)),
            },
        }
        return Ok(candidates);
    }
    let named = !settings.identity_files.is_empty();
    let files = if named { &settings.identity_files } else { &settings.default_identity_files };
    let mut late = Vec::new();
    for path in files {
        match load(path) {
            // Files that the configuration names come before the ssh-agent's keys, default files after them.
            Ok(key) if named => candidates.push(Candidate::File { path: path.clone(), key }),
            Ok(key) => late.push(Candidate::File { path: path.clone(), key }),
            Err(KeyFileProblem::Missing) if named => notes.push(format!("{} is not there", path.display())),
            Err(KeyFileProblem::Missing) => {}
            Err(KeyFileProblem::Bad(why)) => notes.push(why),
            Err(KeyFileProblem::Locked(public)) => match agent.holding(public.as_deref()) {
                Some(candidate) if named => candidates.push(candidate),
                Some(_) => {}
                None => notes.push(locked(path)),
            },
        }
    }
    if !settings.identities_only {
        candidates.extend(agent.keys.iter().cloned().map(|(name, key)| Candidate::Agent { name, key }));
    }
    candidates.extend(late);
    Ok(candidates)
}

fn locked(path: &Path) -> String {
    format!(
        "the key {0} is encrypted and no ssh-agent has it; load it with `ssh-add {0}` (kvm-clone asks for no passphrase)",
        path.display()
    )
}

/// Reads a private key, if others cannot.
fn load(path: &Path) -> Result<Arc<PrivateKey>, KeyFileProblem> {
    let shown = path.display();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(KeyFileProblem::Missing),
        Err(error) => return Err(KeyFileProblem::Bad(format!("the key file {shown} cannot be read: {error}"))),
    };
    let bad = |why: String| KeyFileProblem::Bad(why);
    let metadata = file.metadata().map_err(|error| bad(format!("{shown}: {error}")))?;
    if !metadata.is_file() {
        return Err(bad(format!("{shown} is no file")));
    }
    let mut text = String::new();
    (&file).take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| bad(format!("{shown}: {error}")))?;
    // Before anything is said of its mode: what is no private key may well be readable by others.
    if PublicKey::from_openssh(text.trim()).is_ok() {
        return Err(bad(format!("{shown} is a public key; name the private one, which it lies beside")));
    }
    if !PRIVATE_KEY_WORDS.iter().any(|words| text.contains(words)) {
        return Err(bad(format!("{shown} is no private key")));
    }
    // OpenSSH's rule: what belongs to us must be ours alone.
    if metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o077 != 0 {
        return Err(bad(format!(
            "the key file {shown} can be read by others (mode {:04o}), so it is not used; `chmod 600 {shown}`",
            metadata.mode() & 0o7777
        )));
    }
    match decode_secret_key(&text, None) {
        Ok(key) => Ok(Arc::new(key)),
        Err(russh::keys::Error::KeyIsEncrypted) => Err(KeyFileProblem::Locked(public_part(path, &text))),
        Err(error) => match public_part(path, &text) {
            // A key of a token, or an encrypted one in a form whose error does not say so.
            Some(public) => Err(KeyFileProblem::Locked(Some(public))),
            None => Err(bad(format!("{shown} is no private key that can be used: {error}"))),
        },
    }
}

/// The public half: it stands in clear in OpenSSH's own form, or in the file beside.
fn public_part(path: &Path, text: &str) -> Option<Box<PublicKey>> {
    if let Ok(key) = PrivateKey::from_openssh(text) {
        return Some(Box::new(key.public_key().clone()));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    PublicKey::from_openssh(std::fs::read_to_string(beside).ok()?.trim()).ok().map(Box::new)
}

/// The ssh-agent and its keys; empty where there is none.
struct Agent {
    client: Option<SshAgent>,
    keys: Vec<(String, PublicKey)>,
}

impl Agent {
    async fn open(socket: Option<&Path>) -> Self {
        let listing = async {
            let mut client = AgentClient::connect_uds(socket?).await.ok()?;
            let keys = client.request_identities().await.ok()?;
            Some((client, keys))
        };
        match timeout(Duration::from_secs(AGENT_SECONDS_MAX), listing).await {
            Ok(Some((client, identities))) => {
                let keys = identities.into_iter().filter_map(|identity| match identity {
                    AgentIdentity::PublicKey { key, comment } => Some((format!("the ssh-agent's key {comment}"), key)),
                    AgentIdentity::Certificate { .. } => None,
                });
                Self { client: Some(client), keys: keys.collect() }
            }
            _ => Self { client: None, keys: Vec::new() },
        }
    }

    fn holding(&self, public: Option<&PublicKey>) -> Option<Candidate> {
        let public = public?;
        let (name, key) = self.keys.iter().find(|(_, key)| key.key_data() == public.key_data())?;
        Some(Candidate::Agent { name: name.clone(), key: key.clone() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn why(content: &str, mode: u32) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        match load(&path) {
            Err(KeyFileProblem::Bad(why)) => why,
            Err(KeyFileProblem::Missing | KeyFileProblem::Locked(_)) | Ok(_) => "something else".to_owned(),
        }
    }

    #[test]
    fn only_a_private_key_is_advised_to_be_kept_private() {
        let users = why("root:x:0:0:root:/root:/bin/bash\n", 0o644);
        assert!(users.contains("no private key") && !users.contains("chmod"), "{users}");
        let public = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@here\n";
        let public = why(public, 0o644);
        assert!(public.contains("public key; name the private one"), "{public}");
        let open = why("-----BEGIN OPENSSH PRIVATE KEY-----\n", 0o644);
        assert!(open.contains("chmod 600"), "{open}");
    }
}
