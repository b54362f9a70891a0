//! A TCP proxy that cuts connections, and refuses new ones for a while.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The proxy. Its threads end with their connections, and the listener's with the test's process.
pub struct Cuts {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    live: Mutex<Vec<TcpStream>>,
    /// The answer to a request with these bytes is lost.
    losing: Mutex<Option<Vec<u8>>>,
    closed: AtomicBool,
}

impl Cuts {
    /// A proxy on a free port of its own that leads to `target`, which need not listen yet.
    ///
    /// # Panics
    /// If there is no port.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::default());
        let of = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Nobody behind it: the client sees its connection closed, as with a broker that is down.
                let Ok(server) = TcpStream::connect(target) else { continue };
                if !of.closed.load(Ordering::Relaxed) {
                    of.clone().join(client, server);
                }
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for stream in self.shared.live.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be closed already.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// The next request with these bytes reaches the server, and its connection is cut instead of answered.
    pub fn lose_answer_to(&self, bytes: &[u8]) {
        *self.shared.losing.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.to_vec());
    }

    /// Whether new connections are closed at once.
    pub fn close(&self, closed: bool) {
        self.shared.closed.store(closed, Ordering::Relaxed);
    }
}

impl Shared {
    fn loses(&self, request: &[u8]) -> bool {
        let mut losing = self.losing.lock().unwrap_or_else(PoisonError::into_inner);
        let found = losing.as_ref().is_some_and(|bytes| request.windows(bytes.len()).any(|window| window == bytes));
        if found {
            *losing = None;
        }
        found
    }

    fn join(self: Arc<Self>, client: TcpStream, server: TcpStream) {
        let lost = Arc::new(AtomicBool::new(false));
        for (from, to, is_request) in [(&client, &server, true), (&server, &client, false)] {
            let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else { return };
            from.set_nodelay(true).ok();
            let (lost, shared) = (lost.clone(), self.clone());
            thread::spawn(move || {
                let mut buffer = [0; 16 << 10];
                while let Ok(length @ 1..) = from.read(&mut buffer) {
                    if is_request && shared.loses(&buffer[..length]) {
                        lost.store(true, Ordering::SeqCst);
                    }
                    if (!is_request && lost.load(Ordering::SeqCst)) || to.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
                to.shutdown(Shutdown::Both).ok();
                from.shutdown(Shutdown::Both).ok();
            });
        }
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(|stream| stream.peer_addr().is_ok());
        live.extend([client, server]);
    }
}
