//! Bytes from outside, corrupted in many ways from a seed. Each decoder answers with a value or a readable error, on a
//! small stack, and its memory is limited by the size of the input.

use rouse_agent::clock;
use rouse_agent::config::AgentConfig;
use rouse_agent::http::Server;
use rouse_master::config::Config;
use rouse_master::submission;
use rouse_shared::boot::{self, BootData};
use rouse_shared::limits::MAX_MESSAGE;
use rouse_shared::message::{LogChunk, ToAgent, ToMaster};
use rouse_shared::{BuildId, HostId, WorkerName, codec};
use rouse_tests::chance::Chance;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

/// Inputs for each decoder and kind of start.
const ROUNDS: u64 = 1_500;

/// The stack of the master's threads, and no more.
const STACK: usize = 2 << 20;

/// The system's allocator, which counts what the thread has and had at most.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that ends frees after its counters are gone.
    HELD.try_with(|held| {
        held.set(held.get() + change);
        PEAK.try_with(|peak| peak.set(peak.get().max(held.get()))).ok();
    })
    .ok();
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// MessagePack headers that promise four thousand million elements or bytes, bytes that are no UTF-8, numbers that
/// overflow, and what the texts' grammars care for.
const TOKENS: [&[u8]; 26] = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00",
    b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x01",
    b"\xc0",
    b"\xc1",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\0",
    b"\"",
    b"'''",
    b"[[",
    b"]]",
    b"{",
    b"=",
    b"\n",
    b"://",
    b"@",
    b"18446744073709551616",
    b"-1",
    b"1e999",
    "\u{202e}é".as_bytes(),
];

/// Openings of values within values.
const OPENINGS: [&[u8]; 6] = [b"[", b"{\"a\":", b"\x91", b"\x81\xa1a", b"a.", b"a={"];

/// One to four changes to a valid input.
fn mutate(random: &mut Chance, valid: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = at + random.below((bytes.len() - at).min(40) + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            0 | 1 => bytes.truncate(at),
            2 => {
                let token = TOKENS[random.below(TOKENS.len())];
                bytes.splice(at..end, token.iter().copied());
            }
            3 => {
                let token = TOKENS[random.below(TOKENS.len())];
                bytes.splice(at..at, token.iter().copied());
            }
            4 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
            5 => drop(bytes.drain(at..end)),
            6 => {
                let opening = OPENINGS[random.below(OPENINGS.len())];
                let deep = opening.repeat(1 + random.below(3_000));
                bytes.splice(at..at, deep);
            }
            _ => {
                let byte = random.draw() as u8;
                bytes.splice(at..end, std::iter::repeat_n(byte, random.below(5_000)));
            }
        }
    }
    bytes
}

/// What a decoder said: nothing, or its error.
type Said = Result<(), String>;

fn said<T, E: std::fmt::Display>(result: Result<T, E>) -> Said {
    result.map(drop).map_err(|error| error.to_string())
}

/// Feeds `decode` with each of `valid`, which it must take, and with what is left of them after mutations.
fn feed(name: &str, valid: &[Vec<u8>], decode: fn(&[u8]) -> Said) {
    let name = name.to_owned();
    let valid = valid.to_vec();
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        for bytes in &valid {
            assert_eq!(decode(bytes), Ok(()), "{name}: {}", String::from_utf8_lossy(bytes));
        }
        let (mut taken, mut refused) = (0, 0);
        for seed in 0..ROUNDS * valid.len() as u64 {
            let mut random = Chance::new(seed);
            let bytes = mutate(&mut random, &valid[seed as usize % valid.len()]);
            PEAK.set(HELD.get());
            let (before, began) = (HELD.get(), clock::now());
            let said = decode(&bytes);
            let (used, took) = (PEAK.get() - before, clock::now().since(began));
            // A parsed document costs some ten times its text; what an input only promises costs nothing.
            let most = (1 << 20) + 200 * bytes.len() as isize;
            assert!(used < most, "{name}, seed {seed}: {used} bytes of memory for {} bytes", bytes.len());
            assert!(took < Duration::from_secs(5), "{name}, seed {seed}: {took:?} for {} bytes", bytes.len());
            match said {
                Ok(()) => taken += 1,
                Err(error) => {
                    refused += 1;
                    assert!(!error.trim().is_empty(), "{name}, seed {seed}: no reason");
                    assert!(
                        error.len() < 4_000 + 8 * bytes.len(),
                        "{name}, seed {seed}: {} bytes of error: {error:.500}",
                        error.len()
                    );
                }
            }
        }
        assert!(taken > 0 && refused > taken / 50, "{name}: {taken} taken, {refused} refused: the mutations miss");
    });
    thread.expect("a thread").join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// The kept bytes of released versions whose names begin so, except for what nobody sends any more (see tests/wire.rs).
fn kept(prefix: &str) -> Vec<Vec<u8>> {
    let digit = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits");
    let lines = include_str!("wire/v1.txt").lines().filter_map(|line| line.split_once(' '));
    let lines = lines.filter(|(name, _)| name.starts_with(prefix) && *name != "to-agent/exit");
    lines.map(|(_, hex)| hex.as_bytes().chunks(2).map(digit).collect()).collect()
}

fn text(bytes: &[u8], read: impl FnOnce(&str) -> Said) -> Said {
    // What reads a text refuses other bytes before it comes here.
    String::from_utf8(bytes.to_vec()).map_err(|error| error.to_string()).and_then(|text| read(&text))
}

const BUILD: &str = r#"{"name": "unit tests", "where": {"os": "linux"}, "priority": 3, "retries": 1, "timeout": "1h",
    "env": {"CI": "true"}, "step": [{"name": "a", "run": ["make", "-j4"], "workdir": "src", "env": {"A": "b"},
    "timeout": 60, "silence": "5m", "always": true}, {"run": "make test"}]}"#;

const BUILD_TOML: &str = "name = 'unit tests'\nworker = 'w1'\npriority = 3\ntimeout = '1h'\nenv = { CI = 'true' }\n\
    [[step]]\nrun = ['make', '-j4']\nworkdir = 'src'\n[[step]]\nrun = 'make test'\nsilence = 60\n";

#[test]
fn messages_of_the_wire() {
    feed("to the master", &kept("to-master/"), |bytes| said(codec::decode::<ToMaster>(bytes)));
    feed("to an agent", &kept("to-agent/"), |bytes| said(codec::decode::<ToAgent>(bytes)));
    feed("log", &kept("log-chunk"), |bytes| said(codec::decode::<LogChunk>(bytes)));
    let huge = vec![0; MAX_MESSAGE + 1];
    assert!(codec::decode::<ToMaster>(&huge).is_err_and(|error| error.to_string().contains("more than")));
}

#[test]
fn submissions() {
    let value: serde_json::Value = serde_json::from_str(BUILD).expect("JSON");
    feed("JSON", &[BUILD.into()], |bytes| said(submission::from_json(bytes)));
    feed("TOML", &[BUILD_TOML.into()], |bytes| text(bytes, |text| said(submission::from_toml(text))));
    let packed = rmp_serde::to_vec_named(&value).expect("MessagePack");
    feed("MessagePack", &[packed], |bytes| said(submission::from_msgpack(bytes)));
}

#[test]
fn configurations() {
    let master = "[master]\nname = \"ci\"\nstate_dir = \"/var/lib/rouse\"\n[broker]\nlisten = [\"127.0.0.1:5672\"]\n\
        [[worker]]\nname = \"w1\"\npassword = \"x\"\nmissing_timeout = \"20m\"\nproperties = { os = \"linux\" }\n";
    feed("rouse.toml", &[master.into()], |bytes| {
        text(bytes, |text| said(Config::parse(text, Path::new("/etc/rouse/rouse.toml"))))
    });
    let agent = "name = \"w1\"\npassword = \"x\"\nbroker = \"amqp://broker.example.com/rouse\"\nmax_log_size = \"64MB\"\n\
        power_off_after = \"1h30m\"\npower_off_command = [\"poweroff\"]\n";
    feed("agent.toml", &[agent.into()], |bytes| {
        text(bytes, |text| said(AgentConfig::parse(text, "agent.toml", &Vec::new())))
    });
}

fn boot_data() -> String {
    let data = BootData {
        name: "w1".parse().expect("a name"),
        host: HostId("ci-0123456789abcdef-1".to_owned()),
        broker: "amqps://broker.example.com:5671/rouse".to_owned(),
        ca: Some("-----BEGIN CERTIFICATE-----\n".repeat(40)),
        token: "ab".repeat(16),
        identity: None,
        power_off_after: Some(1_200),
    };
    toml::to_string(&data).expect("TOML")
}

#[test]
fn boot_data_in_every_form() {
    feed("boot data", &[boot_data().into()], |bytes| text(bytes, |text| said(toml::from_str::<BootData>(text))));
    let block = format!("#!/bin/sh\n{}exit 0\n", boot::comment_block(&boot_data()));
    feed("user data", &[block.into()], |bytes| {
        text(bytes, |text| boot::find_block(text).map(drop).ok_or_else(|| "no block".to_owned()))
    });
}

#[test]
fn names_ids_and_addresses() {
    feed("worker", &[b"w1-x".to_vec()], |bytes| text(bytes, |text| said(text.parse::<WorkerName>())));
    feed("build", &[b"12".to_vec()], |bytes| text(bytes, |text| said(text.parse::<BuildId>())));
    let addresses = [b"http://169.254.169.254/".to_vec(), b"http://[fd00::1]:80".to_vec()];
    feed("metadata", &addresses, |bytes| text(bytes, |text| said(Server::parse(text))));
}
