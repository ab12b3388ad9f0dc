//! The PROXY protocol (versions 1 and 2): who the client is whose connection a load balancer passes on.

use std::io;
use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// A line of version 1, with its CRLF.
const MAX_V1: usize = 107;
/// Bytes of a version 2 header: addresses, and what we pass over.
const MAX_V2: usize = 4096;
const V2_PREFIX: usize = 12;

/// Reads the header and nothing behind it. None: the balancer speaks for itself, or does not know.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; V2_PREFIX];
    stream.read_exact(&mut header).await?;
    if header == v2::PROTOCOL_PREFIX {
        let mut rest = [0; 4];
        stream.read_exact(&mut rest).await?;
        header.extend_from_slice(&rest);
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        if length > MAX_V2 {
            return Err(malformed());
        }
        let at = header.len();
        header.resize(at + length, 0);
        stream.read_exact(&mut header[at..]).await?;
    } else {
        while header.last() != Some(&b'\n') {
            if header.len() >= MAX_V1 {
                return Err(malformed());
            }
            header.push(stream.read_u8().await?);
        }
        if !header.ends_with(b"\r\n") {
            return Err(malformed());
        }
    }
    source(&header)
}

fn source(header: &[u8]) -> io::Result<Option<SocketAddr>> {
    match HeaderResult::parse(header) {
        HeaderResult::V1(Ok(header)) => Ok(match header.addresses {
            v1::Addresses::Tcp4(it) => Some((it.source_address, it.source_port).into()),
            v1::Addresses::Tcp6(it) => Some((it.source_address, it.source_port).into()),
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) => Ok(match (header.command, header.addresses) {
            (v2::Command::Local, _) => None,
            (v2::Command::Proxy, v2::Addresses::IPv4(it)) => {
                Some((it.source_address, it.source_port).into())
            }
            (v2::Command::Proxy, v2::Addresses::IPv6(it)) => {
                Some((it.source_address, it.source_port).into())
            }
            (v2::Command::Proxy, _) => None,
        }),
        _ => Err(malformed()),
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no PROXY header")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> (Result<Option<String>, io::ErrorKind>, Vec<u8>) {
        let mut rest = bytes;
        let found = read(&mut rest).await;
        let found = found.map(|it| it.map(|it| it.to_string()));
        (found.map_err(|error| error.kind()), rest.to_vec())
    }

    #[tokio::test]
    async fn headers() {
        let v2 = |bytes: &[u8]| [v2::PROTOCOL_PREFIX, bytes].concat();
        let inet = [192, 0, 2, 1, 192, 0, 2, 2, 0x30, 0x39, 0, 24];
        let malformed = Err(io::ErrorKind::InvalidData);
        for (bytes, want) in [
            (
                b"PROXY TCP4 192.0.2.1 192.0.2.2 12345 24\r\n".to_vec(),
                Ok(Some("192.0.2.1:12345")),
            ),
            (
                b"PROXY TCP6 2001:db8::1 ::1 12345 24\r\n".to_vec(),
                Ok(Some("[2001:db8::1]:12345")),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), Ok(None)),
            (b"PROXY UNKNOWN \n".to_vec(), malformed),
            (b"PROXY TCP4 192.0.2.1\r\n".to_vec(), malformed),
            (b"LHLO mx.example.org\r\n".to_vec(), malformed),
            (
                v2(&[&[0x21, 0x11, 0, 12][..], &inet].concat()),
                Ok(Some("192.0.2.1:12345")),
            ),
            (v2(&[&[0x20, 0x00, 0, 12][..], &inet].concat()), Ok(None)),
            (v2(&[0x20, 0x00, 0, 0]), Ok(None)),
            (v2(&[0x31, 0x11, 0, 0]), malformed),
            (v2(&[0x21, 0x11, 0xff, 0xff]), malformed),
        ] {
            let (found, rest) = read_all(&[&bytes[..], b"LHLO x\r\n"].concat()).await;
            assert_eq!(
                found.as_ref().map(Option::as_deref),
                want.as_ref().map(|it| *it)
            );
            if want.is_ok() {
                assert_eq!(rest, b"LHLO x\r\n", "nothing behind it is taken");
            }
        }
        let (found, _) = read_all(&[b'x'; 200]).await;
        assert_eq!(found, Err(io::ErrorKind::InvalidData));
        let (found, _) = read_all(b"PROXY").await;
        assert_eq!(found, Err(io::ErrorKind::UnexpectedEof));
    }
}
