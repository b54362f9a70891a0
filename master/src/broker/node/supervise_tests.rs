//! The first start of a private broker, with fake programs.

use super::*;
use std::fs;
use std::os::unix::net::UnixDatagram as Datagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// A shell script that can be run.
fn program(dir: &Path, name: &str, text: &str) -> PathBuf {
    let (path, source) = (dir.join(name), dir.join(format!("{name}.sh")));
    fs::write(&source, text).expect("a script");
    // By another program: what this one has open for writing, a child of another test may hold open just then, and
    // such a file cannot be run.
    let mut install = std::process::Command::new("install");
    let made = install.args(["-m", "755"]).arg(source).arg(&path).status().expect("install");
    assert!(made.success(), "{made}");
    path
}

/// A node in this directory.
fn node_in(dir: &Path) -> Prepared {
    fs::create_dir(dir.join("log")).expect("a directory");
    Prepared {
        dir: dir.to_owned(),
        password: String::new(),
        node_name: "test@localhost".to_owned(),
        asks_by_ipv6: false,
        unsettled: None,
    }
}

/// Starts a node in this directory whose broker is this script; what is it told, and how often was it started? The
/// script says that it is ready by making the file `up`.
fn first_start(dir: &Path, server: &str) -> (FirstBoot, usize) {
    // They tell what they were started with in their own directory, and a thread of this test does the rest.
    let epmd = program(dir, "epmd", "#!/bin/sh\necho \"$2\" >port.new && mv port.new port && exec sleep 60\n");
    let server = format!("#!/bin/sh\necho x >>starts\n{server}\n: >up\nexec sleep 60\n");
    let programs = Programs::at(program(dir, "server", &server), epmd);
    let node = node_in(dir);
    let (report, _) = watch::channel(NodeState::Starting);
    let (stop, stopped) = oneshot::channel();
    let (_closer, to_close) = mpsc::channel(1);
    let (first, came_out) = oneshot::channel();
    let over = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| stand_in(dir, &over));
        let node = &node;
        let supervisor = scope.spawn(move || run(node, &programs, Asked { stopped, to_close }, &report, first));
        let result = came_out.blocking_recv();
        drop(stop);
        let ended = supervisor.join();
        over.store(true, Ordering::Relaxed);
        ended.expect("it ends");
        result.expect("a result")
    });
    let starts = fs::read_to_string(dir.join("starts")).expect("it was started");
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

/// A directory, and a broker that fails the first so many times.
fn failing(failures: u32) -> (FirstBoot, usize) {
    let dir = tempfile::tempdir().expect("a directory");
    let script = format!("if [ \"$(wc -l <starts)\" -le {failures} ]; then echo 'a port is taken'; exit 1; fi");
    first_start(dir.path(), &script)
}

#[test]
fn a_first_start_that_fails_is_tried_once_more() {
    assert!(matches!(failing(0), (Ok(None), 1)));
    assert!(matches!(failing(1), (Ok(None), 2)));
    let (result, starts) = failing(5);
    assert!(
        matches!(&result, Err(NodeError::Ended { output, .. }) if output == "a port is taken"),
        "{:?}",
        result.map(|_| ())
    );
    assert_eq!(starts, 2);
}

/// What RabbitMQ 4 prints on the data of 3.10, shortened.
const REFUSAL: &str = "\
BOOT FAILED
===========
Error during startup: {error,failed_to_initialize_feature_flags_registry}

Kernel pid terminated (application_controller) ({application_start_failure,rabbit,...})";

#[test]
fn data_that_are_too_old_are_set_aside_and_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    for name in ["mnesia", "mnesia-set-aside-1"] {
        fs::create_dir(path(name)).expect("a directory");
    }
    fs::write(path("mnesia/old"), "builds").expect("old data");
    fs::write(path("settled"), "").expect("an earlier boot");
    fs::write(path("refusal"), REFUSAL).expect("a text");
    let (result, starts) = first_start(dir.path(), "if [ -e mnesia/old ]; then cat refusal; exit 1; fi");
    let Ok(Some(unsettled)) = result else { panic!("it did not begin anew: {:?}", result.map(|_| ())) };
    assert_eq!(starts, 2);
    assert_eq!(fs::read_to_string(path("mnesia-set-aside-2/old")).expect("kept"), "builds");
    assert_eq!(fs::read_dir(path("mnesia")).expect("new data").count(), 0);
    // Until the new data are complete, the next start begins from the beginning.
    assert!(!path("settled").exists());
    unsettled.settle().expect("settled");
    assert!(path("settled").exists());
}

#[test]
fn a_version_that_refuses_its_own_data_is_no_reason_to_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("mnesia")).expect("a directory");
    fs::write(dir.path().join("refusal"), REFUSAL).expect("a text");
    let (result, starts) = first_start(dir.path(), "cat refusal; exit 1");
    assert!(matches!(result, Err(NodeError::OldData { .. })), "{:?}", result.map(|_| ()));
    assert!(starts <= 3, "{starts}");
}

/// If the test may raise its hard limit, as root on most machines, the kernel's default of 1,048,576 is beyond what the
/// programs get.
#[test]
fn the_programs_get_no_more_descriptors_than_do_them_good() {
    let most = fs::read_to_string("/proc/sys/fs/nr_open").expect("a number").trim().parse().expect("a number");
    let mut limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: both calls use the struct that they are given.
    let hard = unsafe {
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_max
    };
    let dir = tempfile::tempdir().expect("a directory");
    let script = program(dir.path(), "epmd", "#!/bin/sh\n(ulimit -Sn; ulimit -Hn) >limits\n");
    let programs = Programs::at(script.clone(), script);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut epmd = programs.spawn_epmd(&node_in(dir.path()), 1).expect("it starts");
        epmd.wait().await.expect("it ends");
    });
    let given = hard.min(1_000_000);
    assert_eq!(fs::read_to_string(dir.path().join("limits")).expect("written"), format!("{given}\n{given}\n"));
}

#[test]
fn descriptors_are_capped() {
    for (hard, given) in [(1_024, 1_024), (1_000_000, 1_000_000), (1_073_741_816, 1_000_000), (u64::MAX, 1_000_000)] {
        assert_eq!(process::capped(hard), given);
    }
}
