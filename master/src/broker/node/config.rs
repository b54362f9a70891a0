//! The files of a private node: configuration, plugins, password.

use super::super::limits::{AMQP_HEARTBEAT, AUTH_CACHE, BROKER_MAX_MESSAGE, DISK_FREE_LIMIT};
use super::super::{MASTER_USER, VHOST};
use super::{NodeError, NodeSettings, NodeTls, unusable};
use crate::files;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// A unix socket's path must fit `sockaddr_un`.
const LONGEST_SOCKET_PATH: usize = 107;

/// A node's directory, filled.
pub struct Prepared {
    pub dir: PathBuf,
    pub password: String,
    /// `name@host`, as Erlang has it.
    pub node_name: String,
    /// Whether the node asks the master over IPv6.
    pub asks_by_ipv6: bool,
    /// Present until the node has been through a whole first boot.
    pub unsettled: Option<Unsettled>,
}

/// A first boot that is under way.
#[derive(Debug)]
pub struct Unsettled(PathBuf);

impl Unsettled {
    /// From now on the node's data are kept.
    pub fn settle(self) -> Result<(), NodeError> {
        write(&self.0, "The first boot was completed; without this file the next one begins anew.\n")
    }
}

impl Prepared {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts the data out of the way and begins with none. Returns where they are now.
    pub fn set_aside(&self) -> Result<PathBuf, NodeError> {
        let data = self.path("mnesia");
        let place = |number: u32| self.path(&format!("mnesia-set-aside-{number}"));
        let aside = (1..).map(place).find(|path| !path.exists()).unwrap_or_else(|| place(0));
        fs::rename(&data, &aside).map_err(unusable(&aside))?;
        fs::DirBuilder::new().mode(0o700).create(&data).map_err(unusable(&data))?;
        Ok(aside)
    }

    /// A first boot begins. [`Unsettled::settle`] must be called after it.
    pub fn unsettle(&self) -> Result<Unsettled, NodeError> {
        let settled = self.path("settled");
        match fs::remove_file(&settled) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(unusable(&settled)(error)),
            Ok(()) | Err(_) => Ok(Unsettled(settled)),
        }
    }
}

/// Makes the directory and writes the files into it.
pub fn prepare(settings: &NodeSettings, master_on_loopback: bool) -> Result<Prepared, NodeError> {
    // Absolute, since the node runs elsewhere.
    let dir = std::path::absolute(&settings.dir).map_err(unusable(&settings.dir))?;
    if dir.join("notify.sock").as_os_str().len() > LONGEST_SOCKET_PATH {
        return Err(NodeError::PathTooLong(dir));
    }
    for sub in ["", "home", "log", "mnesia", "config", "schema"] {
        let path = dir.join(sub);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(unusable(&path))?;
    }
    let settled = dir.join("settled");
    let unsettled = if settled.exists() {
        None
    } else {
        // A first boot that was cut short leaves data that no later boot completes; nothing was accepted into them.
        let mnesia = dir.join("mnesia");
        fs::remove_dir_all(&mnesia).and_then(|()| fs::create_dir(&mnesia)).map_err(unusable(&mnesia))?;
        Some(Unsettled(settled))
    };
    let password = password(&dir)?;
    write_cookie(&dir)?;
    write(&dir.join("rabbitmq.conf"), &configuration(settings, &dir, &password, master_on_loopback))?;
    // Beside the configuration file RabbitMQ reads these two from /etc unless others are configured.
    write(&dir.join("advanced.config"), "[].\n")?;
    write(
        &dir.join("enabled_plugins"),
        "[rabbitmq_auth_backend_cache,rabbitmq_auth_backend_http,rabbitmq_event_exchange].\n",
    )?;
    let suffix: String = settings.node_name_suffix.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
    let asks_by_ipv6 = settings.auth_listen.is_ipv6();
    Ok(Prepared { dir, password, node_name: format!("rouse{suffix}@localhost"), asks_by_ipv6, unsettled })
}

/// The password of the master's account: made once, since the account is made at the node's first boot only.
fn password(dir: &Path) -> Result<String, NodeError> {
    let path = dir.join("password");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Ok(_empty) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(unusable(&path)(error)),
    }
    let mnesia = dir.join("mnesia");
    if fs::read_dir(&mnesia).map_err(unusable(&mnesia))?.next().is_some() {
        return Err(NodeError::PasswordLost(path));
    }
    let password = random_hex(&path)?;
    write(&path, &password)?;
    Ok(password)
}

/// 48 random hexadecimal digits, for this file.
fn random_hex(path: &Path) -> Result<String, NodeError> {
    let mut random = [0u8; 24];
    getrandom::fill(&mut random).map_err(|error| unusable(path)(std::io::Error::other(error)))?;
    Ok(hex::encode(random))
}

/// Writes Erlang's cookie, if there is none of ours: whoever knows it may run code as the master's user. Erlang's own are
/// 20 capital letters, drawn from the nanoseconds since its start, of which there are few enough to try them all.
fn write_cookie(dir: &Path) -> Result<(), NodeError> {
    let path = dir.join("home").join(".erlang.cookie");
    let ours = |text: &str| text.len() == 48 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match fs::read_to_string(&path) {
        Ok(text) if ours(&text) => Ok(()),
        Ok(_) => write(&path, &random_hex(&path)?),
        Err(error) if error.kind() == ErrorKind::NotFound => write(&path, &random_hex(&path)?),
        Err(error) => Err(unusable(&path)(error)),
    }
}

/// Writes a file that only its owner may read, whole or not at all.
fn write(path: &Path, text: &str) -> Result<(), NodeError> {
    files::replace(path, text.as_bytes()).map_err(unusable(path))
}

/// How long a connection may take to log in, ms. Thousands of agents that connect at once wait for each other, and each
/// that is cut off connects again. RabbitMQ's own limit is 10 s, and 5 s for TLS.
const HANDSHAKE_MS: u32 = 120_000;

/// Send buffer of a connection's socket, bytes. RabbitMQ makes its own receive buffer of a connection as large as the
/// kernel's larger buffer, and on Linux a send buffer that is left alone is some megabytes on loopback. Linux doubles this value.
const SEND_BUFFER: u32 = 131_072;

fn configuration(settings: &NodeSettings, dir: &Path, password: &str, master_on_loopback: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (number, address) in settings.listen.iter().enumerate() {
        // RabbitMQ reads an IPv6 address without brackets: the port follows the last colon.
        lines.push(format!("listeners.tcp.{} = {}:{}", number + 1, address.ip(), address.port()));
    }
    if settings.listen.is_empty() {
        lines.push("listeners.tcp = none".to_owned());
    }
    lines.extend(settings.tls.as_ref().map(encryption));
    let auth = settings.auth_listen;
    let [user, vhost, resource, topic] = ["user", "vhost", "resource", "topic"].map(|kind| settings.askers.path(kind));
    let cache = AUTH_CACHE.as_millis();
    let loopback = if master_on_loopback {
        format!("loopback_users.{MASTER_USER} = true")
    } else {
        // The only way in is not loopback, so the master comes from elsewhere too; its password is 192 random bits.
        "loopback_users = none".to_owned()
    };
    let log = dir.join("log");
    lines.push(format!(
        "tcp_listen_options.backlog = 1024
handshake_timeout = {HANDSHAKE_MS}
ssl_handshake_timeout = {HANDSHAKE_MS}
tcp_listen_options.nodelay = true
tcp_listen_options.sndbuf = {SEND_BUFFER}
default_user = {MASTER_USER}
default_pass = {password}
default_vhost = {VHOST}
default_user_tags.administrator = true
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
{loopback}
auth_backends.1 = internal
auth_backends.2 = cache
auth_cache.cached_backend = http
auth_cache.cache_ttl = {cache}
auth_http.http_method = post
auth_http.user_path = http://{auth}{user}
auth_http.vhost_path = http://{auth}{vhost}
auth_http.resource_path = http://{auth}{resource}
auth_http.topic_path = http://{auth}{topic}
event_exchange.vhost = {VHOST}
heartbeat = {AMQP_HEARTBEAT}
channel_max = 64
max_message_size = {BROKER_MAX_MESSAGE}
vm_memory_high_watermark.relative = 0.8
disk_free_limit.absolute = {DISK_FREE_LIMIT}
log.console = false
log.dir = {log}
log.file = rabbit.log
log.file.level = info
log.connection.level = warning
log.file.rotation.size = 10485760
log.file.rotation.count = 3",
        log = log.display(),
    ));
    lines.join("\n") + "\n"
}

/// The lines about TLS.
fn encryption(tls: &NodeTls) -> String {
    let mut lines = Vec::new();
    for (number, address) in tls.listen.iter().enumerate() {
        lines.push(format!("listeners.ssl.{} = {}:{}", number + 1, address.ip(), address.port()));
    }
    lines.push(format!(
        "ssl_options.certfile = {cert}
ssl_options.cacertfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2",
        cert = tls.files.cert.display(),
        key = tls.files.key.display(),
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::super::auth::Askers;
    use super::*;

    fn settings(dir: &Path) -> NodeSettings {
        NodeSettings {
            dir: dir.to_owned(),
            listen: vec!["127.0.0.1:5672".parse().unwrap()],
            auth_listen: "127.0.0.1:8091".parse().unwrap(),
            // As a broker of the operator's own has it.
            askers: Askers::own_broker(None),
            node_name_suffix: "a-1'}".to_owned(),
            tls: None,
        }
    }

    #[test]
    fn the_password_is_kept_private_and_its_loss_is_reported() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        // What a first boot that was cut short has left is no hindrance.
        fs::create_dir(dir.path().join("mnesia")).unwrap();
        fs::write(dir.path().join("mnesia/half"), "").unwrap();
        let mut first = prepare(&settings(dir.path()), true).unwrap();
        assert!(!dir.path().join("mnesia/half").exists());
        first.unsettled.take().unwrap().settle().unwrap();
        assert_eq!(first.node_name, "rousea1@localhost");
        assert_eq!(first.password.len(), 48);
        let path = first.path("password");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(prepare(&settings(dir.path()), true).unwrap().password, first.password);
        fs::write(dir.path().join("mnesia/x"), "").unwrap();
        assert_eq!(prepare(&settings(dir.path()), true).unwrap().password, first.password);
        fs::remove_file(&path).unwrap();
        assert!(matches!(prepare(&settings(dir.path()), true), Err(NodeError::PasswordLost(_))));
    }

    #[test]
    fn the_cookie_is_random_and_stays() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let cookie = || {
            let node = prepare(&settings(dir.path()), true).unwrap();
            let path = node.path("home").join(".erlang.cookie");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::read_to_string(path).unwrap()
        };
        let first = cookie();
        assert_eq!(first.len(), 48);
        assert_eq!(cookie(), first);
        // One of Erlang's own.
        fs::write(dir.path().join("home/.erlang.cookie"), "AAAABBBBCCCCDDDDEEEE").unwrap();
        assert_ne!(cookie(), first);
        assert_eq!(cookie().len(), 48);
    }

    #[test]
    fn a_path_that_no_socket_fits_is_refused() {
        let settings = settings(&Path::new("/tmp").join("x".repeat(100)));
        assert!(matches!(prepare(&settings, true), Err(NodeError::PathTooLong(_))));
    }

    #[test]
    fn what_operators_copy_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let node = prepare(&settings(dir.path()), true).unwrap();
        let ours = fs::read_to_string(node.path("rabbitmq.conf")).unwrap();
        let lines = include_str!("../../../../contrib/rabbitmq/rabbitmq.conf").lines();
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            assert!(ours.lines().any(|own| own == line), "{line:?} is not what the private node has");
        }
        let plugins = include_str!("../../../../contrib/rabbitmq/enabled_plugins");
        assert_eq!(fs::read_to_string(node.path("enabled_plugins")).unwrap(), plugins);
    }
}
