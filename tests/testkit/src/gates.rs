//! Gates in front of PostgreSQL, that fail on command.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// A TCP relay that can be shut or fall silent.
#[derive(Debug)]
pub struct TcpGate {
    /// Where it listens.
    pub address: SocketAddr,
    state: watch::Sender<Relay>,
    forgotten: watch::Sender<()>,
}

/// What a relay does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relay {
    Open,
    /// Connections break, new ones are closed at once.
    Shut,
    /// Connections stay, new ones are taken, and nobody says a word: a firewall, a host that went
    /// down.
    Silent,
}

impl TcpGate {
    /// Opens a gate to `upstream`.
    ///
    /// # Panics
    /// Where no port can be had.
    pub async fn open(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, state) = watch::channel(Relay::Open);
        let (forgotten, forget) = watch::channel(());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut state, mut forget) = (state.clone(), forget.clone());
                forget.mark_unchanged();
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    let at_first = *state.borrow();
                    if at_first == Relay::Open {
                        let Ok(mut server) = TcpStream::connect(&upstream).await else { return };
                        let forgotten = tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
                            _ = state.wait_for(|state| *state != Relay::Open) => false,
                            Ok(()) = forget.changed() => true,
                        };
                        if forgotten {
                            std::future::pending::<()>().await;
                        }
                        // Kept, so that the server does not see the client go.
                        let _ = state.wait_for(|state| *state != Relay::Silent).await;
                    } else if at_first == Relay::Silent {
                        let _ = state.wait_for(|state| *state != Relay::Silent).await;
                    }
                });
            }
        });
        Self { address, state: sender, forgotten }
    }

    /// Shuts or opens the gate.
    pub fn set_open(&self, open: bool) {
        self.state.send_replace(if open { Relay::Open } else { Relay::Shut });
    }

    /// The connections that are open now stay open and say nothing any more: a NAT gateway that
    /// forgot them. New ones pass.
    pub fn forget_connections(&self) {
        self.forgotten.send_replace(());
    }

    /// From now on nothing passes, and no connection breaks.
    pub fn fall_silent(&self) {
        self.state.send_replace(Relay::Silent);
    }
}

/// Puts TLS in front of a PostgreSQL that has none, with a certificate for `localhost`: the server
/// half of `SSLRequest` (PostgreSQL documentation, "Message Flow", SSL Session Encryption). Gives
/// the address, and the PEM of who vouches for the certificate.
///
/// # Panics
/// Where no port can be had.
pub async fn tls_before_postgres(upstream: String) -> (SocketAddr, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().expect("a key");
    let authority = params.self_signed(&authority_key).expect("a certificate").pem();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .and_then(|params| params.signed_by(&key, &issuer))
        .expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a configuration");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
            tokio::spawn(async move {
                // As PostgreSQL itself does.
                client.set_nodelay(true)?;
                let mut request = [0; 8];
                client.read_exact(&mut request).await?;
                client.write_all(b"S").await?;
                let mut client = acceptor.accept(client).await?;
                let mut server = TcpStream::connect(upstream).await?;
                server.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (address, authority)
}
