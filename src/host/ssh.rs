//! One ssh connection to a host: reached, its key judged, the user logged in, programs run on it.
//!
//! A key that is not the known one is refused before anything else is said. Nothing is guessed: what was tried and
//! what was refused stands in the error. Keys themselves and passphrases are never logged.

mod login;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{self, Handle, Msg};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, Disconnect, Preferred, cipher};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::known_hosts::{self, KnownHost, Verdict};
use super::ssh_config::SshSettings;
use crate::world::FaultKind;

/// How long reaching the host may take, all its addresses together.
const CONNECT_SECONDS_MAX: u64 = 15;
/// How long agreeing on keys may take once it is reached.
const HANDSHAKE_SECONDS_MAX: u64 = 15;
/// How long logging in may take, all keys together. A key on a token may want to be touched.
const LOGIN_SECONDS_MAX: u64 = 60;
/// How long a short command may take.
const COMMAND_SECONDS_MAX: u64 = 20;
/// How long saying goodbye may take.
const CLOSE_SECONDS_MAX: u64 = 3;
/// Bytes of a short command's output that are kept.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// What may be under way towards us: a long fat line is filled with it.
const WINDOW_BYTES: u32 = 16 << 20;
/// Messages that wait for us in a channel, each of at most 32 KiB, before the line is held.
const CHANNEL_MESSAGES_MAX: usize = 256;
/// After so much silence the other end is asked for a sign of life.
const KEEPALIVE_SECONDS: u64 = 10;
/// So many such questions without an answer end the connection.
const KEEPALIVE_UNANSWERED_MAX: usize = 3;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub(super) struct SshError {
    /// What it means.
    pub(super) kind: FaultKind,
    /// What, why, and what to do.
    pub(super) detail: String,
}

impl SshError {
    fn unusable(detail: impl Into<String>) -> Self {
        Self { kind: FaultKind::Unusable, detail: detail.into() }
    }

    fn unreachable(detail: impl Into<String>) -> Self {
        Self { kind: FaultKind::Unreachable, detail: detail.into() }
    }
}

/// A connection, logged in.
pub(super) struct SshLink {
    handle: Handle<KeyJudge>,
}

/// What a short command left behind.
#[derive(Debug)]
pub(super) struct CommandOutput {
    /// Its stdout, at most 64 KiB of it.
    pub(super) stdout: String,
    /// Its stderr, likewise.
    pub(super) stderr: String,
}

impl SshLink {
    /// Reaches the host, judges its key, logs in. `key_file` is the one key that the user named, if any.
    pub(super) async fn open(
        settings: &SshSettings,
        key_file: Option<&PathBuf>,
        accept_new_host_keys: bool,
    ) -> Result<Self, SshError> {
        let place = format!("{}:{}", settings.host_name, settings.port);
        let known = known_hosts::read(&settings.known_hosts_files, &settings.host_key_name, settings.port)
            .map_err(|error| SshError::unusable(format!("cannot read the known host keys: {error}")))?;
        let socket = reach(settings, &place).await?;
        let config = Arc::new(config(&known));
        let judge = KeyJudge { settings: settings.clone(), known, accept_new_host_keys };
        let handshake = client::connect_stream(config, socket, judge);
        let mut handle = match timeout(Duration::from_secs(HANDSHAKE_SECONDS_MAX), handshake).await {
            Ok(Ok(handle)) => handle,
            Ok(Err(LinkError::Key(refusal))) => return Err(SshError::unusable(refusal)),
            Ok(Err(LinkError::Ssh(error))) => return Err(handshake_error(&place, &error)),
            Err(_) => {
                return Err(SshError {
                    kind: FaultKind::TimedOut,
                    detail: format!(
                        "{place} took the connection and did not agree on keys within {HANDSHAKE_SECONDS_MAX} s"
                    ),
                });
            }
        };
        match timeout(Duration::from_secs(LOGIN_SECONDS_MAX), login::log_in(&mut handle, settings, key_file)).await {
            Ok(result) => result?,
            Err(_) => {
                return Err(SshError {
                    kind: FaultKind::TimedOut,
                    detail: format!("logging in to {place} was not answered within {LOGIN_SECONDS_MAX} s"),
                });
            }
        }
        Ok(Self { handle })
    }

    /// Starts a command of constant text on a channel of its own.
    pub(super) async fn start(&self, command: &str) -> Result<Channel<Msg>, SshError> {
        let lost = |error: russh::Error| SshError::unreachable(format!("the ssh connection failed: {error}"));
        let mut channel = self.handle.channel_open_session().await.map_err(lost)?;
        channel.exec(true, command).await.map_err(lost)?;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => return Ok(channel),
                Some(ChannelMsg::Failure) => {
                    return Err(SshError::unusable(
                        "sshd refuses to run commands for this user (a forced command or an sftp-only account?)",
                    ));
                }
                Some(_) => {}
                None => return Err(SshError::unreachable("the ssh connection ended")),
            }
        }
    }

    /// Runs a short command of constant text to its end.
    pub(super) async fn run(&self, command: &str) -> Result<CommandOutput, SshError> {
        let work = async {
            let mut channel = self.start(command).await?;
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            let keep = |kept: &mut Vec<u8>, data: &[u8]| {
                kept.extend_from_slice(&data[..data.len().min(OUTPUT_BYTES_MAX - kept.len())]);
            };
            while let Some(message) = channel.wait().await {
                match message {
                    ChannelMsg::Data { data } => keep(&mut stdout, &data),
                    ChannelMsg::ExtendedData { data, .. } => keep(&mut stderr, &data),
                    ChannelMsg::Close => break,
                    _ => {}
                }
            }
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok(CommandOutput { stdout: text(stdout), stderr: text(stderr) })
        };
        timeout(Duration::from_secs(COMMAND_SECONDS_MAX), work).await.unwrap_or_else(|_| {
            Err(SshError {
                kind: FaultKind::TimedOut,
                detail: format!("the host did not run a short command within {COMMAND_SECONDS_MAX} s"),
            })
        })
    }

    /// Says goodbye.
    pub(super) async fn close(self) {
        let goodbye = self.handle.disconnect(Disconnect::ByApplication, "", "");
        // Whether it was heard or not: the connection is dropped.
        drop(timeout(Duration::from_secs(CLOSE_SECONDS_MAX), goodbye).await);
    }
}

async fn reach(settings: &SshSettings, place: &str) -> Result<TcpStream, SshError> {
    let attempt = async {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((settings.host_name.as_str(), settings.port))
            .await
            .map_err(|error| name_error(&error))?
            .collect();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
        }
        Err(SshError::unreachable(match last.kind() {
            io::ErrorKind::ConnectionRefused => {
                format!("connection to {place} refused; is sshd running there, and on that port?")
            }
            _ => format!("cannot reach {place}: {last}"),
        }))
    };
    let socket = timeout(Duration::from_secs(CONNECT_SECONDS_MAX), attempt).await.unwrap_or_else(|_| {
        Err(SshError {
            kind: FaultKind::TimedOut,
            detail: format!(
                "{place} did not answer within {CONNECT_SECONDS_MAX} s; check the address, the network and firewalls"
            ),
        })
    })?;
    // Only latency suffers where it fails.
    drop(socket.set_nodelay(true));
    Ok(socket)
}

/// A name that cannot be resolved now may be resolved later; one that does not exist is wrong.
fn name_error(error: &io::Error) -> SshError {
    let text = error.to_string();
    if text.contains("Temporary failure") {
        SshError::unreachable(format!("the name cannot be resolved now: {text}"))
    } else {
        SshError::unusable(format!("{text}; check the name, or add an alias to ~/.ssh/config"))
    }
}

fn handshake_error(place: &str, error: &russh::Error) -> SshError {
    match error {
        russh::Error::NoCommonAlgo { .. } | russh::Error::KexInit | russh::Error::Version => {
            SshError::unusable(format!("no common ssh algorithms with {place}: {error}"))
        }
        _ => SshError::unreachable(format!("the ssh handshake with {place} failed: {error}")),
    }
}

fn config(known: &KnownHost) -> client::Config {
    client::Config {
        nodelay: true,
        window_size: WINDOW_BYTES,
        channel_buffer_size: CHANNEL_MESSAGES_MAX,
        keepalive_interval: Some(Duration::from_secs(KEEPALIVE_SECONDS)),
        keepalive_max: KEEPALIVE_UNANSWERED_MAX,
        preferred: preferred(known),
        ..client::Config::default()
    }
}

/// Ciphers by speed on this machine, and first the types of key by which the host is known: it has to show one of them.
fn preferred(known: &KnownHost) -> Preferred {
    const AES_FIRST: &[cipher::Name] = &[
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::CHACHA20_POLY1305,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ];
    const CHACHA_FIRST: &[cipher::Name] = &[
        cipher::CHACHA20_POLY1305,
        cipher::AES_128_GCM,
        cipher::AES_256_GCM,
        cipher::AES_256_CTR,
        cipher::AES_128_CTR,
    ];
    let defaults = Preferred::default();
    let known = known.algorithms();
    // One RSA key signs in several ways.
    let same_key =
        |a: &Algorithm, b: &Algorithm| a == b || matches!((a, b), (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }));
    let (mut first, rest): (Vec<Algorithm>, Vec<Algorithm>) =
        defaults.key.iter().cloned().partition(|algorithm| known.iter().any(|known| same_key(known, algorithm)));
    first.extend(rest);
    Preferred {
        key: first.into(),
        cipher: if cpu_has_aes() { AES_FIRST } else { CHACHA_FIRST }.into(),
        compression: (&[russh::compression::NONE]).into(),
        ..defaults
    }
}

fn cpu_has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Decides whether the key is the host's.
struct KeyJudge {
    settings: SshSettings,
    known: KnownHost,
    accept_new_host_keys: bool,
}

/// What ends a handshake.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Ssh(#[from] russh::Error),
    #[error("{0}")]
    Key(String),
}

impl client::Handler for KeyJudge {
    type Error = LinkError;

    async fn check_server_key(&mut self, offered: &PublicKeyOrCertificate) -> Result<bool, LinkError> {
        match offered {
            PublicKeyOrCertificate::PublicKey { key, .. } => self.judge(key.key_data()),
            // Never asked for, so never offered by an honest host.
            PublicKeyOrCertificate::Certificate(_) => {
                Err(LinkError::Key("the host shows a certificate, which is not supported".into()))
            }
        }
        .map(|()| true)
    }
}

impl KeyJudge {
    fn judge(&self, offered: &KeyData) -> Result<(), LinkError> {
        let SshSettings { host_name, host_key_name, port, .. } = &self.settings;
        let name = known_hosts::name_in_file(host_key_name, *port);
        let fingerprint = offered.fingerprint(HashAlg::Sha256);
        let kind = offered.algorithm();
        let file = self.settings.known_hosts_files.first();
        let shown = file.map_or_else(|| "~/.ssh/known_hosts".into(), |file| file.display().to_string());
        Err(LinkError::Key(match self.known.judge(offered) {
            Verdict::Known => return Ok(()),
            Verdict::Unknown { .. } if self.accept_new_host_keys => {
                return known_hosts::add(file, &name, &PublicKey::from(offered.clone())).map_err(|error| {
                    LinkError::Key(format!("the host's new key cannot be written to {shown}: {error}"))
                });
            }
            Verdict::Unknown { authority } => {
                let note = authority.map_or(String::new(), |place| {
                    format!(" ({place} names an authority for it; host certificates are not supported)")
                });
                format!(
                    "the host's key is not known{note}: {kind} {fingerprint}. Compare it with what \
                     `ssh-keygen -lf /etc/ssh/ssh_host_{}_key.pub` prints on the host; if it is the same, accept it with \
                     `ssh-keyscan -p {port} {host_name} >> {shown}` or log in once with `ssh -p {port} {host_name}`",
                    file_name_of(&kind)
                )
            }
            Verdict::Changed { place } => format!(
                "THE HOST'S KEY HAS CHANGED: {kind} {fingerprint} is not the key of {place}. Somebody may be listening, \
                 or the host was installed anew. Nothing was sent to it. Only if you know why it changed: \
                 `ssh-keygen -R '{name}' -f {shown}`, then accept the new key"
            ),
            Verdict::Revoked { place } => {
                format!("the host's key {kind} {fingerprint} is revoked by {place}; it is never accepted")
            }
        }))
    }
}

/// The key's place in the name of sshd's key files.
fn file_name_of(algorithm: &Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Rsa { .. } => "rsa",
        Algorithm::Ecdsa { .. } => "ecdsa",
        _ => "ed25519",
    }
}
