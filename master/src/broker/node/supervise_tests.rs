//! The first start of a private broker, with programs that only pretend.

use super::*;
use std::fs;
use std::os::unix::net::UnixDatagram as Datagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Runs a node whose broker fails the first so many times. How its first start came out, and how often it was started.
fn first_start(failures: u32) -> (Result<(), NodeError>, usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let program = |name: &str, text: &str| {
        let (path, source) = (dir.path().join(name), dir.path().join(format!("{name}.sh")));
        fs::write(&source, text).expect("a script");
        // By another program: what this one has open for writing, a child of another test may hold open just then, and
        // such a file cannot be run.
        let mut install = std::process::Command::new("install");
        let made = install.args(["-m", "755"]).arg(source).arg(&path).status().expect("install");
        assert!(made.success(), "{made}");
        path
    };
    // They tell what they were started with in their own directory, and a thread of this test does the rest.
    let epmd = program("epmd", "#!/bin/sh\necho \"$2\" >port.new && mv port.new port && exec sleep 60\n");
    let server = format!(
        "#!/bin/sh\necho x >>starts\nif [ \"$(wc -l <starts)\" -le {failures} ]; then echo 'a port is taken'; exit 1; fi\n\
         : >up\nexec sleep 60\n"
    );
    let programs = Programs::at(program("server", &server), epmd);
    fs::create_dir(dir.path().join("log")).expect("a directory");
    let node = Prepared {
        dir: dir.path().to_owned(),
        password: String::new(),
        node_name: "test@localhost".to_owned(),
        unsettled: None,
    };
    let (report, _) = watch::channel(NodeState::Starting);
    let (stop, stopped) = oneshot::channel();
    let (first, came_out) = oneshot::channel();
    let over = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| stand_in(dir.path(), &over));
        let node = &node;
        let supervisor = scope.spawn(move || run(node, &programs, stopped, &report, first));
        let result = came_out.blocking_recv();
        drop(stop);
        let ended = supervisor.join();
        over.store(true, Ordering::Relaxed);
        ended.expect("it ends");
        result.expect("a result")
    });
    let starts = fs::read_to_string(dir.path().join("starts")).expect("it was started");
    (result, starts.lines().count())
}

/// Listens where an epmd should, and says for a broker that it is ready.
fn stand_in(dir: &Path, over: &AtomicBool) {
    let mut listeners = Vec::new();
    let mut bound = String::new();
    while !over.load(Ordering::Relaxed) {
        if let Ok(port) = fs::read_to_string(dir.join("port")).map(|text| text.trim().to_owned())
            && port != bound
        {
            listeners.push(std::net::TcpListener::bind(format!("127.0.0.1:{port}")).expect("the port"));
            bound = port;
        }
        if dir.join("up").exists() {
            // Whether it is still heard does not matter here.
            drop(Datagram::unbound().and_then(|socket| socket.send_to(b"READY=1\n", dir.join("notify.sock"))));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_first_start_that_fails_is_tried_once_more() {
    assert!(matches!(first_start(0), (Ok(()), 1)));
    assert!(matches!(first_start(1), (Ok(()), 2)));
    let (result, starts) = first_start(5);
    assert!(matches!(&result, Err(NodeError::Ended { output, .. }) if output == "a port is taken"), "{result:?}");
    assert_eq!(starts, 2);
}
