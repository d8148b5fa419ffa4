//! What can go wrong between smcctl and smcd, and what to do about it.

use anyhow::{Error, anyhow};
use cli::exit::advised;
use cli::units;
use hyper::StatusCode;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// What was asked, and whom.
#[derive(Debug, Clone)]
pub struct Question {
    /// Method and path.
    pub request: String,
    /// The socket.
    pub socket: PathBuf,
}

/// No answer of smcd's came.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody takes connections, or not from us.
    Unreachable(io::Error),
    /// No answer came within this time.
    Silent(Duration),
    /// The connection ended before the answer did.
    Cut,
    /// What came is no HTTP.
    NotHttp(hyper::Error),
    /// The answer is longer than any of smcd's, which have so many bytes at most.
    TooLarge(usize),
    /// The answer is not what the request asks for.
    NotUnderstood(String),
    /// No success, and no error of smcd's either; with the beginning of what came.
    Foreign(StatusCode, String),
}

impl Trouble {
    /// The error for people: which request, on which socket, what happened and what to do.
    pub fn over(self, question: &Question) -> Error {
        let advice = self.advice();
        let (request, socket) = (&question.request, question.socket.display());
        let error = match self {
            Self::Unreachable(error) => Error::new(error).context(format!("connect to smcd on {socket}")),
            Self::Silent(patience) => anyhow!(
                "{request}: smcd on {socket} did not answer within {} s; it may still do what it was asked for",
                patience.as_secs()
            ),
            Self::Cut => anyhow!("{request}: smcd on {socket} ended the connection before it had answered"),
            Self::NotHttp(error) => {
                Error::new(error).context(format!("{request}: what answers on {socket} does not speak HTTP"))
            }
            Self::TooLarge(limit) => {
                let limit = units::size(limit as u64);
                anyhow!("{request}: the answer on {socket} is larger than {limit}")
            }
            Self::NotUnderstood(why) => anyhow!("{request}: the answer on {socket} is not understood: {why}"),
            Self::Foreign(status, said) => anyhow!("{request}: {socket} answered {status}: {said}"),
        };
        advised(error, advice)
    }

    fn advice(&self) -> String {
        let advice = match self {
            Self::Unreachable(error) => match error.kind() {
                io::ErrorKind::PermissionDenied => "the socket is root's: run smcctl as root",
                io::ErrorKind::TimedOut => {
                    "it is there, but takes no connections: `systemctl status smcd` tells more"
                }
                _ => {
                    "is smcd running? `systemctl status smcd` tells, `systemctl start smcd` starts it; \
                     --socket or SMC_SOCKET name another socket"
                }
            },
            Self::Silent(_) | Self::Cut => {
                "`journalctl -u smcd` tells why, `smcctl job ls` what became of the jobs"
            }
            Self::NotHttp(_) | Self::TooLarge(_) | Self::Foreign(..) => "is that the socket of smcd?",
            Self::NotUnderstood(_) => {
                let version = env!("CARGO_PKG_VERSION");
                return format!("this is smcctl {version}: is smcd of the same version?");
            }
        };
        advice.to_owned()
    }
}

impl From<hyper::Error> for Trouble {
    fn from(error: hyper::Error) -> Self {
        if error.is_parse() {
            Self::NotHttp(error)
        } else {
            Self::Cut
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_fits_the_trouble() {
        let advice = |kind: io::ErrorKind| Trouble::Unreachable(kind.into()).advice();
        assert!(advice(io::ErrorKind::PermissionDenied).contains("as root"));
        assert!(advice(io::ErrorKind::TimedOut).contains("takes no connections"));
        assert!(advice(io::ErrorKind::ConnectionRefused).contains("is smcd running?"));
        assert!(Trouble::Cut.advice().contains("journalctl"));
    }
}
