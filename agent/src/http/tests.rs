//! The client against a server on a real socket that answers in every valid and invalid way.
#![allow(clippy::unwrap_used)]

use super::*;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What the server does after it has read the head of a request.
#[derive(Clone)]
enum Way {
    /// Sends this in pieces of this many bytes, then closes.
    Say(Vec<u8>, usize),
    /// Sends this again and again until nobody listens.
    Flood(&'static [u8]),
    /// Sends this and then nothing, with the connection open.
    Stall(&'static [u8]),
    /// Closes with a reset.
    Reset,
}

fn say(text: &str) -> Way {
    Way::Say(text.as_bytes().to_vec(), usize::MAX)
}

/// A server for one connection; returns the request, and how many bytes it could send.
async fn server(way: Way) -> (Server, JoinHandle<(String, usize)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        let mut sent = 0;
        match way {
            Way::Say(bytes, piece) => {
                for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
                    if stream.write_all(piece).await.is_err() {
                        break;
                    }
                    sent += piece.len();
                    tokio::task::yield_now().await;
                }
            }
            Way::Flood(bytes) => {
                while stream.write_all(bytes).await.is_ok() {
                    sent += bytes.len();
                }
            }
            Way::Stall(bytes) => {
                stream.write_all(bytes).await.unwrap();
                // Until the other side has had enough.
                let gone = stream.read_u8().await;
                assert!(gone.is_err());
            }
            Way::Reset => stream.set_zero_linger().unwrap(),
        }
        (String::from_utf8(request).unwrap(), sent)
    });
    (server, task)
}

async fn get(way: Way) -> Result<Response, HttpError> {
    let (server, task) = server(way).await;
    let answer = server.get("/x", &[], 100).await;
    task.abort();
    answer
}

#[test]
fn addresses_are_plain() {
    for (address, host, port) in [
        ("http://169.254.169.254", "169.254.169.254", 80),
        ("http://127.0.0.1:8080/", "127.0.0.1", 8080),
        ("http://[fd00:ec2::254]", "fd00:ec2::254", 80),
        ("http://[::1]:81", "::1", 81),
        ("http://metadata.example.com", "metadata.example.com", 80),
    ] {
        let server = Server::parse(address).unwrap();
        assert_eq!((server.host.as_str(), server.port), (host, port));
    }
    for bad in [
        "https://169.254.169.254",
        "169.254.169.254",
        "http://",
        "http://:80",
        "http://a:b",
        "http://a:99999",
        "http://user@a",
        "http://a/path",
        "http://fd00:ec2::254",
        "http://[::1]x",
        "http://a\r\nX: y",
        "http://[fe80::a9fe:a9fe]",
        "http://[fe80::a9fe:a9fe%]",
        "http://[fe80::a9fe:a9fe%25eth0/x]",
        "http://[fd00:ec2::254%25eth0]",
        "http://a%25eth0",
    ] {
        assert!(matches!(Server::parse(bad), Err(HttpError::Address(_))), "{bad:?} was taken");
    }
}

#[test]
fn a_link_local_address_has_its_interface() {
    for (address, port, zone) in [
        ("http://[fe80::a9fe:a9fe%25eth0]", 80, "eth0"),
        ("http://[fe80::a9fe:a9fe%eth0.7]:8080/", 8080, "eth0.7"),
        ("http://[fe80::a9fe:a9fe%252]", 80, "2"),
    ] {
        let server = Server::parse(address).unwrap();
        assert_eq!((server.host.as_str(), server.port), ("fe80::a9fe:a9fe", port));
        assert_eq!(server.zone.as_deref(), Some(zone));
        assert!(!server.authority.contains('%'), "a host field has no interface: {}", server.authority);
        assert_eq!(Server::parse(&server.to_string()).unwrap(), server, "{server}");
    }
}

#[tokio::test]
async fn a_service_on_a_link_is_reached() {
    // Address, number of the interface, length of the prefix, scope (20 is the link), flags, name.
    let known = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let fields = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let on_link = known.lines().map(fields).find(|fields| fields.get(3).is_some_and(|scope| scope == "20"));
    // A machine without IPv6 has none.
    let Some(fields) = on_link else { return };
    let address = std::net::Ipv6Addr::from(u128::from_str_radix(&fields[0], 16).unwrap());
    let number = u32::from_str_radix(&fields[1], 16).unwrap();
    let Ok(listener) = TcpListener::bind(SocketAddrV6::new(address, 0, 0, number)).await else { return };
    let port = listener.local_addr().unwrap().port();
    for zone in [&fields[5], &number.to_string()] {
        let server = Server::parse(&format!("http://[{address}%25{zone}]:{port}")).unwrap();
        let answer = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let (answer, request) = tokio::join!(server.get("/x", &[], 100), answer);
        assert_eq!(answer.unwrap().body, b"hi");
        assert!(request.contains(&format!("Host: [{address}]:{port}\r\n")), "{request}");
    }
    let nowhere = Server::parse("http://[fe80::1%25no-such-link]").unwrap();
    let told = nowhere.get("/x", &[], 100).await.unwrap_err();
    assert!(matches!(&told, HttpError::Connect(why) if why.to_string().contains("no-such-link")), "{told:?}");
}

#[tokio::test]
async fn a_request_is_what_it_should_be() {
    let (server, task) = server(say("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntoken")).await;
    let answer = server.put("/latest/api/token", &[("X-aws-ec2-metadata-token-ttl-seconds", "60")], 100).await.unwrap();
    assert_eq!(answer, Response { status: 200, body: b"token".to_vec() });
    let (request, _) = task.await.unwrap();
    let lines: Vec<_> = request.lines().collect();
    assert_eq!(lines[0], "PUT /latest/api/token HTTP/1.1");
    assert_eq!(lines[1], format!("Host: {}", server.authority));
    for line in ["Connection: close", "Content-Length: 0", "X-aws-ec2-metadata-token-ttl-seconds: 60"] {
        assert!(lines.contains(&line), "{request}");
    }
}

#[tokio::test]
async fn bodies_come_in_every_form() {
    for text in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nContent-Length: 5\r\n\r\nhello and more that nobody asked for",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ] {
        for piece in [1, 7, usize::MAX] {
            let answer = get(Way::Say(text.as_bytes().to_vec(), piece)).await.unwrap();
            assert_eq!(answer, Response { status: 200, body: b"hello".to_vec() }, "{text:?} by {piece}");
        }
    }
    let answer = get(say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (404, 0));
    let answer = get(say("HTTP/1.1 204 No Content\r\n\r\n")).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (204, 0));
}

#[tokio::test]
async fn what_is_not_an_answer_is_an_error_of_its_kind() {
    for (text, part) in [
        ("", "incomplete"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "incomplete"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "incomplete"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", "incomplete"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "incomplete"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", "does not end where"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "without a length"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "longer than 100"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "not chunked"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "both content-length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", "two different values"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "not a number"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", "longer than 100"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n", "longer than 100"),
        ("HTTP/1.1 999 Odd\r\n\r\n", "no valid status"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        ("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", "redirect (status 302)"),
    ] {
        let error = get(say(text)).await.unwrap_err().to_string();
        assert!(error.contains(part), "{text:?}: {error}");
    }
    assert!(matches!(get(Way::Reset).await, Err(HttpError::Broken(_))));
}

#[tokio::test]
async fn a_flood_is_cut_off_early() {
    for (head, body) in [
        ("HTTP/1.1 200 OK\r\n\r\n", &b"0123456789abcdef"[..]),
        ("HTTP/1.1 200 OK\r\nX: ", b"0123456789abcdef"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"0123456789abcdef"),
        ("", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ] {
        let mut whole = head.as_bytes().to_vec();
        whole.extend(body.repeat(1 << 20));
        let (server, task) = server(Way::Say(whole, 1 << 16)).await;
        let asked = server.get("/", &[], 100).await;
        assert!(asked.is_err(), "{head:?}");
        // Nobody reads more than the sockets themselves hold.
        let (_, sent) = task.await.unwrap();
        assert!(sent < 12 << 20, "{head:?}: {sent} bytes were taken");
    }
    let (server, task) = server(Way::Flood(b"HTTP/1.1 200 OK\r\n\r\n")).await;
    assert!(matches!(server.get("/", &[], 100).await, Err(HttpError::TooLong(100))));
    task.await.unwrap();
}

#[tokio::test]
async fn a_server_that_stalls_is_given_up() {
    // At once, since each is waited for. A clock that can be turned on would be one more feature of Tokio's, and with it
    // everything would be compiled once for the programs and once for the tests.
    let (first, second, third) = tokio::join!(
        get(Way::Stall(b"")),
        get(Way::Stall(b"HTTP/1.1 200 OK\r\n")),
        get(Way::Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")),
    );
    for answer in [first, second, third] {
        assert!(matches!(answer, Err(HttpError::Slow)));
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    drop(listener);
    assert!(matches!(server.get("/", &[], 100).await, Err(HttpError::Connect(_))));
}
