//! Dovecot's own delivery agents: what puts a message into a mailbox that only Dovecot can write.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where LMTP listens.
const PORT: u16 = 24;

/// `hand_over`: the way to Dovecot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Agent {
    /// Its LMTP server; a host that is a path is a unix socket.
    Lmtp { host: String, port: u16 },
    /// `dovecot-lda`, run by whoever delivers.
    Lda {
        program: PathBuf,
        arguments: Vec<String>,
    },
}

/// One message's way into a mailbox of Dovecot's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    pub agent: Agent,
    /// RCPT TO; for dovecot-lda the original recipient (`-a`), empty where it could not read it.
    pub recipient: String,
}

impl Agent {
    /// `lmtp:PATH`, `lmtp:HOST:PORT`, `lda:PROGRAM ARGUMENT …`; an error says what is wrong.
    pub fn parse(text: &str) -> Result<Agent, String> {
        match text.split_once(':') {
            Some(("lmtp", host)) if host.starts_with('/') => Ok(Agent::Lmtp {
                host: host.to_owned(),
                port: PORT,
            }),
            Some(("lmtp", server)) => {
                let (host, port) = server
                    .rsplit_once(':')
                    .ok_or_else(|| format!("{server:?} is no path and has no port"))?;
                let port = port.parse().ok().filter(|&port| port > 0);
                let port = port.ok_or_else(|| format!("{server:?} has no port"))?;
                // An IPv6 address has colons of its own.
                let host = host.trim_start_matches('[').trim_end_matches(']');
                match host.is_empty() {
                    true => Err(format!("{server:?} has no host")),
                    false => Ok(Agent::Lmtp {
                        host: host.to_owned(),
                        port,
                    }),
                }
            }
            Some(("lda", command)) => {
                let mut words = command.split_whitespace().map(str::to_owned);
                let program = words.next().map(PathBuf::from);
                let program = program.filter(|it| it.is_absolute());
                Ok(Agent::Lda {
                    program: program
                        .ok_or_else(|| format!("{command:?} does not begin with a whole path"))?,
                    arguments: words.collect(),
                })
            }
            _ => Err(format!("{text:?} begins with neither lmtp: nor lda:")),
        }
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Agent::Lmtp { host, .. } if host.starts_with('/') => write!(f, "lmtp:{host}"),
            Agent::Lmtp { host, port } if host.contains(':') => write!(f, "lmtp:[{host}]:{port}"),
            Agent::Lmtp { host, port } => write!(f, "lmtp:{host}:{port}"),
            Agent::Lda { program, arguments } => {
                write!(f, "lda:{}", program.display())?;
                arguments.iter().try_for_each(|it| write!(f, " {it}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_dovecot() {
        for text in [
            "lmtp:/run/dovecot/lmtp",
            "lmtp:localhost:24",
            "lmtp:[::1]:2424",
            "lda:/usr/lib/dovecot/dovecot-lda",
            "lda:/usr/lib/dovecot/dovecot-lda -c /etc/dovecot/other.conf",
        ] {
            assert_eq!(
                Agent::parse(text).map(|it| it.to_string()),
                Ok(text.to_owned())
            );
        }
        for text in [
            "",
            "lmtp",
            "lmtp:",
            "lmtp:localhost",
            "lmtp:localhost:x",
            "lmtp:localhost:0",
            "lmtp::24",
            "lda:",
            "lda: ",
            "lda:dovecot-lda",
            "/run/dovecot/lmtp",
            "LMTP:/run/dovecot/lmtp",
        ] {
            assert!(Agent::parse(text).is_err(), "{text}");
        }
    }
}
