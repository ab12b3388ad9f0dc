//! TLS on a client's stream: by STARTTLS (RFC 3207), or from the first byte on.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ProtocolVersion, ServerConfig};
use tokio_rustls::server::TlsStream;

use super::connection::Wire;

/// `ssl_server_cert_file` and its kin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// PEM: the server's certificate, then those of its chain.
    pub certificate: PathBuf,
    /// PEM, readable for whoever starts the server only.
    pub key: PathBuf,
    /// `ssl_min_protocol` is TLSv1.3.
    pub only_tls13: bool,
}

impl Files {
    /// Reads them. Errors name the file.
    pub fn load(&self) -> io::Result<Arc<ServerConfig>> {
        let named = |path: &Path, error: &dyn std::fmt::Display| {
            io::Error::other(format!("{}: {error}", path.display()))
        };
        let in_certificate = |error| named(&self.certificate, &error);
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .map_err(in_certificate)?
            .collect::<Result<Vec<_>, _>>()
            .map_err(in_certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|it| named(&self.key, &it))?;
        let versions = match self.only_tls13 {
            true => &[&TLS13][..],
            false => &[&TLS13, &TLS12],
        };
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .and_then(|it| it.with_no_client_auth().with_single_cert(chain, key))
            .map(Arc::new)
            .map_err(|error| named(&self.certificate, &error))
    }
}

/// A client's stream, before TLS and after.
pub enum Channel<S> {
    Plain(S),
    Tls(Box<TlsStream<S>>),
    /// TLS was to begin and did not.
    Broken,
}

impl<S: Wire> From<S> for Channel<S> {
    fn from(stream: S) -> Channel<S> {
        Channel::Plain(stream)
    }
}

impl<S: Wire> Channel<S> {
    /// Begins TLS; after an error nothing can be said any more.
    pub async fn secure(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let Channel::Plain(stream) = std::mem::replace(self, Channel::Broken) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        *self = Channel::Tls(Box::new(stream));
        Ok(())
    }

    /// For `Received`: `TLSv1.3 with cipher TLS13_AES_256_GCM_SHA384`.
    pub fn cipher(&self) -> Option<String> {
        let Channel::Tls(stream) = self else {
            return None;
        };
        let (_, connection) = stream.get_ref();
        let version = match connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let suite = connection.negotiated_cipher_suite()?.suite();
        Some(format!("{version} with cipher {}", suite.as_str()?))
    }

    /// Whether the client has closed the connection; nothing is read for that.
    pub fn is_gone(&self) -> bool {
        match self {
            Channel::Plain(stream) => stream.is_gone(),
            Channel::Tls(stream) => stream.get_ref().0.is_gone(),
            Channel::Broken => true,
        }
    }
}

impl<S: Wire> AsyncRead for Channel<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Channel::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Channel::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Channel::Broken => Poll::Ready(Ok(())),
        }
    }
}

impl<S: Wire> AsyncWrite for Channel<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Channel::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Channel::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Channel::Broken => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Channel::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Channel::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Channel::Broken => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Channel::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Channel::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Channel::Broken => Poll::Ready(Ok(())),
        }
    }
}
