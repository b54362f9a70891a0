//! `rouse check --online` for your own broker: reports whether the broker has what the master and its agents need. The
//! check leaves nothing behind: everything that it declares ends with its connections.

mod management;
mod node;
mod versions;

use super::Admission;
use super::auth::{Askers, AuthError, AuthServer};
use super::limits::CONNECT_TIMEOUT;
use super::link::{Endpoints, Tls, Trust, classic, dial, shown};
use super::rate_limiter::RateLimiter;
use super::refusals::Refusals;
use crate::core::Admitted;
use lapin::options::QueueDeclareOptions;
use lapin::uri::AMQPUri;
use node::Probe;
use rouse_shared::error::Chain;
use rouse_shared::{Nonce, WorkerName, certificate, names};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The settings that are compared with the broker.
pub struct Settings<'a> {
    /// `broker.url`
    pub url: &'a str,
    /// `broker.ca`
    pub ca: Option<&'a Path>,
    /// `broker.auth_listen`: where the master answers when it runs; if it does not, the check answers there for a moment.
    pub auth_listen: SocketAddr,
    /// Who may ask there.
    pub askers: Askers,
    /// `broker.management_url`
    pub management: Option<&'a str>,
    /// The worker whose lease leaves the least time to go to another node of a cluster. Absent if none has a lease.
    pub hurried: Option<Hurried>,
}

/// A worker's lease, and the time between two heartbeats.
pub struct Hurried {
    /// Its name.
    pub worker: String,
    /// `lease`
    pub lease: Duration,
    /// `keepalive_interval`
    pub keepalive: Duration,
}

/// Looks at each broker of `url`: sentences that begin with the key that they are about, and whether each is good news.
pub async fn check(settings: Settings<'_>) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut say = |good, text: String| found.push((good, format!("broker.url: {text}")));
    let trust = Trust::Authorities(settings.ca.map(Path::to_owned));
    let (endpoints, tls) = match (Endpoints::parse(settings.url), trust.read().await) {
        (Ok(endpoints), Ok(tls)) => (endpoints, tls),
        (Err(error), _) => return vec![(false, format!("broker.url: {error}"))],
        (_, Err(why)) => return vec![(false, format!("broker.url: {why}"))],
    };
    let master = Master::stand_in(settings.auth_listen, settings.askers, endpoints.vhost()).await;
    let mut probe: Option<Probe> = None;
    let mut versions = Vec::new();
    for uri in endpoints.uris() {
        let mut faults = Vec::new();
        let mut version = String::new();
        match timeout(CONNECT_TIMEOUT, dial(uri, &tls, "rouse check")).await {
            Ok(Ok(connection)) => {
                if let Some(told) = node::version(uri, &tls).await {
                    faults.extend(versions::unsupported(&told));
                    version = format!(" (RabbitMQ {told})");
                    versions.push((uri.authority.host.clone(), told));
                }
                faults.extend(node::events(&connection, uri, &tls).await.err());
                if let Ok(master) = &master {
                    faults.extend(master.is_asked(uri, &tls).await.err());
                }
                match &mut probe {
                    Some(probe) => faults.extend(probe.is_reached(&connection).await.err()),
                    None => match Probe::new(uri, &tls).await {
                        Ok(made) => faults.extend(probe.insert(made).is_reached(&connection).await.err()),
                        Err(why) => faults.push(why),
                    },
                }
            }
            Ok(Err(error)) => {
                let why = certificate::with_explanation(error.to_string(), &error, &uri.authority.host);
                faults.push(format!("the master cannot log in: {why}"));
            }
            Err(_elapsed) => faults.push(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
        }
        if faults.is_empty() {
            say(true, format!("{}: the master can use it{version}", shown(uri)));
        }
        faults.into_iter().for_each(|fault| say(false, format!("{}: {fault}", shown(uri))));
    }
    versions::mixed(&versions).into_iter().for_each(|why| say(false, why));
    if let Err(why) = master {
        match why {
            AuthError::AddressInUse(address) => say(
                true,
                format!("{address} is in use, probably by the master: not checked whether the broker asks there"),
            ),
            AuthError::Listen { .. } | AuthError::NoAddress(_) => say(false, Chain(&why).to_string()),
        }
    }
    match settings.management {
        Some(management) => {
            let api = management::Api {
                url: management,
                ca: settings.ca,
                broker: &endpoints,
                probe: probe.as_ref().map(Probe::queue),
                hurried: settings.hurried.as_ref(),
            };
            let seen = api.check().await;
            found.extend(seen.into_iter().map(|(good, text)| (good, format!("broker.management_url: {text}"))));
        }
        None => say(
            true,
            "not checked, because broker.management_url is not set: policies of queues, and what each node of a cluster \
             says of itself"
                .to_owned(),
        ),
    }
    if let Some(probe) = probe {
        probe.close().await;
    }
    found
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
