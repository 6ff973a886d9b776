//! A gate in front of PostgreSQL or S3 that cuts one connection after a number of bytes: in the
//! middle of a statement, between two of them, before an answer, and after a half of it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// Where a connection is cut: after this many bytes that went this way since the gate was armed,
/// over all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which bytes count.
    pub way: Way,
    /// How many of them still pass.
    pub after: u64,
}

#[derive(Default)]
struct Passed {
    armed: Option<Cut>,
    bytes: [u64; 2],
    /// After how many bytes each write ended: a client writes a statement, or a request, at once.
    writes: [Vec<u64>; 2],
}

/// The gate.
pub struct CutGate {
    /// Where it listens.
    pub address: SocketAddr,
    passed: Arc<Mutex<Passed>>,
}

impl CutGate {
    /// Opens a gate to `upstream` (`host:port`).
    ///
    /// # Panics
    /// If no port can be had.
    pub async fn open(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let passed = Arc::new(Mutex::new(Passed::default()));
        let shared = Arc::clone(&passed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, upstream.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, passed }
    }

    /// Counts from zero, and cuts the connection that reaches this point, if any.
    pub fn arm(&self, cut: Option<Cut>) {
        *lock(&self.passed) = Passed { armed: cut, ..Passed::default() };
    }

    /// Whether the cut is still to come.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        lock(&self.passed).armed.is_some()
    }

    /// Every place worth cutting at, by what has passed since the gate was armed: after each write,
    /// a byte earlier and a byte later, in both directions.
    #[must_use]
    pub fn boundaries(&self) -> Vec<Cut> {
        let passed = lock(&self.passed);
        let of = |way: Way| {
            let after = passed.writes[way as usize].iter();
            let near = after.flat_map(|end| [end.saturating_sub(1), *end, end + 1]);
            near.map(move |after| Cut { way, after }).collect::<Vec<_>>()
        };
        let mut all = [of(Way::Up), of(Way::Down)].concat();
        all.dedup();
        all
    }
}

fn lock(passed: &Mutex<Passed>) -> MutexGuard<'_, Passed> {
    passed.lock().expect("not poisoned")
}

/// Ends both ways as soon as one of them ends.
async fn relay(client: TcpStream, upstream: String, passed: Arc<Mutex<Passed>>) {
    let Ok(server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = one_way(from_client, to_server, Way::Up, &passed) => {}
        () = one_way(from_server, to_client, Way::Down, &passed) => {}
    }
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    way: Way,
    passed: &Mutex<Passed>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let (count, is_cut) = lock(passed).take(way, read);
        if to.write_all(&buffer[..count]).await.is_err() || is_cut {
            return;
        }
    }
}

impl Passed {
    /// How many of these bytes pass, and whether the connection is cut after them.
    fn take(&mut self, way: Way, read: usize) -> (usize, bool) {
        let before = self.bytes[way as usize];
        let after = before + read as u64;
        if let Some(cut) = self.armed.filter(|cut| cut.way == way && cut.after <= after) {
            self.armed = None;
            let passes = usize::try_from(cut.after.saturating_sub(before)).expect("of one read");
            self.bytes[way as usize] = cut.after.max(before);
            return (passes, true);
        }
        self.bytes[way as usize] = after;
        self.writes[way as usize].push(after);
        (read, false)
    }
}
