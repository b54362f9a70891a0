//! `rouse check --online` for your own broker: reports whether the broker has what the master and its agents need. The
//! check leaves nothing behind: everything that it declares ends with its connection.

use super::Admission;
use super::auth::{Askers, AuthError, AuthServer};
use super::limits::CONNECT_TIMEOUT;
use super::link::{Endpoints, Tls, Trust, classic, code, dial, shown};
use super::rate_limiter::RateLimiter;
use super::refusals::Refusals;
use crate::core::Admitted;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{Connection, ExchangeKind};
use rouse_shared::error::Chain;
use rouse_shared::{Nonce, WorkerName, certificate, names};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// AMQP's reply codes.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;

/// Looks at each broker of `url`: sentences, and whether each is as it should be. `auth_listen` is where the master
/// answers when it runs; if it does not, this answers there for a moment, whoever may ask.
pub async fn check(url: &str, ca: Option<&Path>, auth_listen: SocketAddr, askers: Askers) -> Vec<(bool, String)> {
    let trust = Trust::Authorities(ca.map(Path::to_owned));
    let (endpoints, tls) = match (Endpoints::parse(url), trust.read().await) {
        (Ok(endpoints), Ok(tls)) => (endpoints, tls),
        (Err(error), _) => return vec![(false, error.to_string())],
        (_, Err(why)) => return vec![(false, why)],
    };
    let master = Master::stand_in(auth_listen, askers, endpoints.vhost()).await;
    let mut found = Vec::new();
    for uri in endpoints.uris() {
        let mut faults = Vec::new();
        match timeout(CONNECT_TIMEOUT, dial(uri, &tls, "rouse check")).await {
            Ok(Ok(connection)) => {
                faults.extend(events(&connection, &uri.vhost).await.err());
                if let Ok(master) = &master {
                    faults.extend(master.is_asked(uri, &tls).await.err());
                }
            }
            Ok(Err(error)) => {
                let why = certificate::with_explanation(error.to_string(), &error, &uri.authority.host);
                faults.push(format!("the master cannot log in: {why}"));
            }
            Err(_elapsed) => faults.push(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
        }
        if faults.is_empty() {
            found.push((true, format!("{}: the master can use it", shown(uri))));
        }
        found.extend(faults.into_iter().map(|fault| (false, format!("{}: {fault}", shown(uri)))));
    }
    if let Err(why) = master {
        found.push(match why {
            AuthError::AddressInUse(address) => (
                true,
                format!("{address} is in use, probably by the master: not checked whether the broker asks there"),
            ),
            AuthError::Listen { .. } | AuthError::NoAddress(_) => (false, Chain(&why).to_string()),
        });
    }
    found
}

/// Whether the broker publishes its events where the master listens, and the master's account may read them.
async fn events(connection: &Connection, vhost: &str) -> Result<(), String> {
    const EXCHANGE: &str = "amq.rabbitmq.event";
    let trouble = |error: lapin::Error| match code(&error) {
        Some(NOT_FOUND) => format!(
            "it publishes no events in the virtual host {vhost}, so a killed agent is noticed only when its lease \
             expires: enable the plugin rabbitmq_event_exchange and set event_exchange.vhost = {vhost} in rabbitmq.conf"
        ),
        Some(ACCESS_REFUSED) => format!(
            "the master's account lacks permissions in the virtual host {vhost}; it needs all three (configure, write, \
             read) for \".*\": {error}"
        ),
        _ => format!("its events cannot be read: {error}"),
    };
    let look = async {
        let channel = connection.create_channel().await?;
        let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
        channel.exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, passive, FieldTable::default()).await?;
        let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), exclusive, classic()).await?.name().clone();
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue, EXCHANGE.into(), "rouse.check".into(), options, none).await
    };
    match timeout(CONNECT_TIMEOUT, look).await {
        Ok(looked) => looked.map_err(trouble),
        Err(_elapsed) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

/// Stands in for the master that the broker asks: it knows one worker.
struct Master {
    worker: WorkerName,
    password: String,
    asked: Arc<AtomicU32>,
    server: AuthServer,
}

impl Master {
    async fn stand_in(listen: SocketAddr, askers: Askers, vhost: &str) -> Result<Self, AuthError> {
        let unusable = |source| AuthError::Listen { address: listen, source };
        let mut random = [0_u8; 24];
        getrandom::fill(&mut random).map_err(|error| unusable(std::io::Error::other(error)))?;
        let (name, password) = (format!("check-{}", hex::encode(&random[..8])), hex::encode(&random[8..]));
        let worker: WorkerName = name.parse().map_err(|error| unusable(std::io::Error::other(format!("{error}"))))?;
        let (admissions, mut questions) = mpsc::channel::<Admission>(8);
        let refusals = Refusals::default();
        let limiter = RateLimiter::new(refusals.clone());
        let server =
            AuthServer::start(AuthServer::listen(listen).await?, askers, vhost, admissions, refusals, limiter)?;
        let asked = Arc::new(AtomicU32::new(0));
        let (known, count) = ((worker.clone(), password.clone()), asked.clone());
        tokio::spawn(async move {
            while let Some(question) = questions.recv().await {
                let is_known = question.worker == known.0 && question.password == known.1;
                count.fetch_add(u32::from(is_known), Ordering::Relaxed);
                // A broker that does not wait for the answer is told of below.
                drop(question.reply.send(if is_known {
                    Ok(Admitted::Anybody)
                } else {
                    Err("a check is under way".to_owned())
                }));
            }
        });
        Ok(Self { worker, password, asked, server })
    }

    /// Logs in as an agent does, twice, and declares the agent's queue.
    async fn is_asked(&self, uri: &AMQPUri, tls: &Tls) -> Result<(), String> {
        let mut uri = uri.clone();
        uri.authority.userinfo.username = self.worker.to_string();
        uri.authority.userinfo.password.clone_from(&self.password);
        let address = self.server.address();
        self.asked.store(0, Ordering::Relaxed);
        let first = self.log_in(&uri, tls).await;
        let asked = self.asked.swap(0, Ordering::Relaxed);
        if asked == 0 {
            return Err(format!(
                "it does not ask the master who may connect: auth_backends and auth_http in rabbitmq.conf must point to \
                 http://{address}, which it must be able to reach, with broker.auth_secret in its paths if there is one{}",
                if address.is_ipv6() { "; without further settings RabbitMQ asks over IPv4 only" } else { "" }
            ));
        }
        first.map_err(|why| format!("it asks the master, but refuses an agent that the master accepts: {why}"))?;
        self.log_in(&uri, tls).await.map_err(|why| format!("it accepts an agent only once: {why}"))?;
        if self.asked.load(Ordering::Relaxed) > 0 {
            return Err(
                "it does not cache the master's answers, and would ask about nearly every message: enable the \
                        plugin rabbitmq_auth_backend_cache and set auth_backends as in contrib/rabbitmq/rabbitmq.conf"
                    .to_owned(),
            );
        }
        Ok(())
    }

    async fn log_in(&self, uri: &AMQPUri, tls: &Tls) -> Result<(), String> {
        let queue = names::agent_queue(&self.worker, &Nonce("check".to_owned()), 1);
        let log_in = async {
            let connection = dial(uri, tls, "rouse check, as an agent").await?;
            let channel = connection.create_channel().await?;
            let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
            channel.queue_declare(queue.as_str().into(), exclusive, classic()).await?;
            // So that the queue is gone before it is declared again.
            connection.close(200, "checked".into()).await
        };
        match timeout(CONNECT_TIMEOUT, log_in).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
        }
    }
}
