//! Who is at the other end: what the connection tells, and what XCLIENT and XFORWARD say of the client behind a trusted one.

use std::net::IpAddr;
use std::time::Duration;

use super::parameters::{number, parameters_refused};
use super::reply::Reply;

/// What XCLIENT may say (Dovecot's words; others are passed over).
pub const XCLIENT: &str = "XCLIENT ADDR HELO LOGIN SESSION TTL TIMEOUT";
/// What XFORWARD may say (Postfix's words).
pub const XFORWARD: &str = "XFORWARD NAME ADDR IDENT";

/// Bytes of an id that somebody else has made.
const MAX_ID: usize = 128;
/// Bytes of a name that somebody else has given.
const MAX_NAME: usize = 255;

/// Who speaks to us, or whom he speaks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Client {
    /// None on a unix socket.
    pub address: Option<IpAddr>,
    /// What the client behind a proxy said in LHLO.
    pub helo: Option<String>,
    /// Who has logged in there.
    pub login: Option<String>,
    /// The proxies that the connection has come through.
    pub ttl: Option<u32>,
    /// How long the proxy waits for an answer.
    pub patience: Option<Duration>,
}

impl Client {
    /// Where the socket says that it is; none: a unix socket.
    pub fn at(address: Option<IpAddr>) -> Client {
        Client {
            address: address.map(|it| it.to_canonical()),
            ..Client::default()
        }
    }

    /// As an address literal has it (RFC 5321 section 4.1.3).
    pub fn literal(&self) -> Option<String> {
        self.address.map(|address| match address {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("IPv6:{ip}"),
        })
    }

    /// Takes over what XCLIENT says; answers the id of the session where it says one. After an error nothing has changed.
    pub fn take(&mut self, attributes: &[(String, String)]) -> Result<Option<String>, Reply> {
        let mut new = self.clone();
        let mut session = None;
        for (name, value) in attributes {
            let bad = || parameters_refused(&format!("Invalid {name} parameter"));
            match name.as_str() {
                "ADDR" => new.address = Some(address(value).ok_or_else(bad)?),
                "HELO" => new.helo = Some(value.chars().take(MAX_NAME).collect()),
                "LOGIN" => new.login = Some(value.clone()),
                "SESSION" if is_id(value) => session = Some(value.clone()),
                "SESSION" => return Err(bad()),
                "TTL" => new.ttl = Some(small(value).ok_or_else(bad)?),
                "TIMEOUT" => {
                    let seconds = small(value).ok_or_else(bad)?;
                    new.patience = Some(Duration::from_secs(seconds.into()));
                }
                "PORT" => drop(value.parse::<u16>().map_err(|_| bad())?),
                _ => {}
            }
        }
        *self = new;
        Ok(session)
    }
}

/// What XFORWARD says of the message that comes next: for the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The MTA's queue id (IDENT).
    pub queue_id: Option<String>,
    /// Where the MTA has it from: `mail.example.org[192.0.2.1]`.
    pub client: Option<String>,
    name: Option<String>,
    address: Option<String>,
}

impl Forwarded {
    /// Several XFORWARDs add up (Postfix splits what is long).
    pub fn take(&mut self, attributes: &[(String, String)]) {
        for (name, value) in attributes {
            let place = match name.as_str() {
                "IDENT" if is_id(value) => &mut self.queue_id,
                "NAME" => &mut self.name,
                "ADDR" => &mut self.address,
                _ => continue,
            };
            *place = Some(value.chars().take(MAX_NAME).collect());
        }
        let shown = |it: &Option<String>| it.clone().unwrap_or_else(|| "unknown".into());
        let is_known = self.name.is_some() || self.address.is_some();
        self.client = is_known.then(|| format!("{}[{}]", shown(&self.name), shown(&self.address)));
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let is_v6 = text
        .get(..5)
        .is_some_and(|it| it.eq_ignore_ascii_case("IPV6:"));
    match is_v6 {
        true => text[5..].parse().ok().map(IpAddr::V6),
        false => text.parse().ok(),
    }
    .map(|it: IpAddr| it.to_canonical())
}

fn small(text: &str) -> Option<u32> {
    number(text).and_then(|it| it.try_into().ok())
}

/// It goes into replies, log and `Received`.
fn is_id(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+/:=_.-".contains(c);
    (1..=MAX_ID).contains(&text.len()) && text.chars().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::super::parameters::attributes;
    use super::*;

    #[test]
    fn addresses() {
        for (address, want) in [
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "IPv6:2001:db8::1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            let client = Client::at(address.parse().ok());
            assert_eq!(client.literal().as_deref(), Some(want));
        }
    }

    #[test]
    fn what_xclient_says() {
        let known = Client::at("192.0.2.9".parse().ok());
        for (text, want) in [
            ("ADDR=192.0.2.1 PORT=25", Ok("192.0.2.1 - - - -")),
            ("ADDR=IPV6:2001:db8::1", Ok("IPv6:2001:db8::1 - - - -")),
            ("ADDR=2001:db8::1", Ok("IPv6:2001:db8::1 - - - -")),
            ("ADDR=::ffff:192.0.2.7", Ok("192.0.2.7 - - - -")),
            ("HELO=mx LOGIN=bob", Ok("192.0.2.9 mx bob - -")),
            ("TTL=4 SESSION=abc:P1", Ok("192.0.2.9 - - 4 abc:P1")),
            ("DESTNAME=x FUTURE=y", Ok("192.0.2.9 - - - -")),
            ("ADDR=mx", Err(501)),
            ("PORT=70000", Err(501)),
            ("TTL=-1", Err(501)),
            ("TIMEOUT=1s", Err(501)),
            ("SESSION=a<b", Err(501)),
        ] {
            let mut client = known.clone();
            let took = client.take(&attributes(text).unwrap());
            let shown = |it: Option<String>| it.unwrap_or_else(|| "-".into());
            let found = took.map_err(|reply| reply.code()).map(|session| {
                let ttl = client.ttl.map(|ttl| ttl.to_string());
                [
                    client.literal(),
                    client.helo.clone(),
                    client.login.clone(),
                    ttl,
                    session,
                ]
                .map(shown)
                .join(" ")
            });
            assert_eq!(found.as_deref().map_err(|code| *code), want, "{text}");
            if want.is_err() {
                assert_eq!(client, known, "{text}");
            }
        }
    }

    #[test]
    fn what_xforward_says() {
        let mut forwarded = Forwarded::default();
        forwarded.take(&attributes("NAME=mail.example.org PORT=25 PROTO=ESMTP").unwrap());
        forwarded.take(&attributes("ADDR=192.0.2.1 IDENT=4XqZ2v5Dz9 SOURCE=REMOTE").unwrap());
        assert_eq!(
            forwarded.client.as_deref(),
            Some("mail.example.org[192.0.2.1]")
        );
        assert_eq!(forwarded.queue_id.as_deref(), Some("4XqZ2v5Dz9"));
        let mut local = Forwarded::default();
        local.take(&attributes("NAME=[UNAVAILABLE] SOURCE=LOCAL IDENT=a+20b").unwrap());
        assert_eq!(local, Forwarded::default());
    }
}
