//! The statements that write a record.

use super::engine::{Dialect, Statement, key, statement};
use super::{ended, journal, json, sql_id, sql_number};
use crate::core::images::ImageRecord;
use crate::core::mail::{Mail, News};
use crate::core::places::PlaceRecord;
use crate::core::record::{Host, HostState, Record, Session, WorkerRecord};

/// Appends the statements that write a record.
pub(super) fn write(dialect: Dialect, record: &Record, to: &mut Vec<Statement>) {
    match record {
        Record::NewBuild { id, spec, message_id, status } => {
            let state = status.state();
            let with = [
                sql_id(*id).into(),
                state.as_str().into(),
                (!state.is_final()).into(),
                message_id.clone().map_or(super::engine::Value::Null, key),
                json(&**spec).into(),
                json(status).into(),
            ];
            to.push(match dialect {
                Dialect::Sqlite => statement(NEW_BUILD, with),
                #[cfg(feature = "postgres")]
                Dialect::Postgres => super::postgres::new_build(spec, with),
            });
            if state.is_final() {
                ended::add(dialect, *id, status, to);
            }
        }
        Record::Build(id, status) => {
            let state = status.state();
            let sql = "UPDATE builds SET state = ?2, live = ?3, status = ?4 WHERE id = ?1";
            let with = [sql_id(*id).into(), state.as_str().into(), (!state.is_final()).into(), json(status).into()];
            to.push(statement(sql, with));
            if state.is_final() {
                ended::add(dialect, *id, status, to);
            }
        }
        Record::LogsMeasured(id, bytes) => to.push(ended::set_size(*id, *bytes)),
        Record::LogsExpired(id, at) => to.push(ended::expire_logs(*id, *at)),
        Record::LogsDeleted(id) => to.push(ended::logs_deleted(*id)),
        Record::LogsUploaded(id, store, upload) => to.push(ended::uploaded(*id, store, *upload)),
        Record::BuildDeleted(id) => ended::delete(dialect, *id, to),
        // What people may ask about it is kept with its builds. Its order has a token, and what the user gave to the
        // machine.
        Record::Host(host) if host.state == HostState::Terminated => {
            to.push(statement("DELETE FROM hosts WHERE id = ?1", [host.id.as_str().into()]));
        }
        Record::Host(host) => {
            let sql = "INSERT INTO hosts (id, row) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET row = excluded.row";
            to.push(statement(sql, [host.id.as_str().into(), json::<Host>(host).into()]));
        }
        Record::Session(session) => {
            let sql = "INSERT INTO sessions (worker, row) VALUES (?1, ?2)
                       ON CONFLICT (worker) DO UPDATE SET row = excluded.row";
            to.push(statement(sql, [session.worker.as_str().into(), json::<Session>(session).into()]));
        }
        Record::SessionOver(worker) => {
            to.push(statement("DELETE FROM sessions WHERE worker = ?1", [worker.as_str().into()]));
        }
        Record::Worker(name, record) => {
            let sql = "INSERT INTO workers (name, row) VALUES (?1, ?2)
                       ON CONFLICT (name) DO UPDATE SET row = excluded.row";
            to.push(statement(sql, [name.as_str().into(), json::<WorkerRecord>(record).into()]));
        }
        Record::Image(image, record) => {
            let sql = "INSERT INTO images (provider, name, row) VALUES (?1, ?2, ?3)
                       ON CONFLICT (provider, name) DO UPDATE SET row = excluded.row";
            let row = json::<ImageRecord>(record);
            to.push(statement(sql, [image.provider.as_str().into(), key(&*image.image), row.into()]));
        }
        Record::Place(place, record) if *record == PlaceRecord::default() => {
            let sql = "DELETE FROM places WHERE provider = ?1 AND name = ?2";
            to.push(statement(sql, [place.provider.as_str().into(), key(&*place.name)]));
        }
        Record::Place(place, record) => {
            let sql = "INSERT INTO places (provider, name, row) VALUES (?1, ?2, ?3)
                       ON CONFLICT (provider, name) DO UPDATE SET row = excluded.row";
            let row = json::<PlaceRecord>(record);
            to.push(statement(sql, [place.provider.as_str().into(), key(&*place.name), row.into()]));
        }
        Record::Spent(spent) => {
            to.push(fact("spent_day", spent.day));
            to.push(fact("spent_micros", spent.micros));
        }
        Record::News(news) => {
            let sql = "INSERT INTO news (id, row) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET row = excluded.row";
            to.push(statement(sql, [sql_number(news.id).into(), json::<News>(news).into()]));
        }
        Record::NewsOver(id) => to.push(statement("DELETE FROM news WHERE id = ?1", [sql_number(*id).into()])),
        Record::Mail(mail) => {
            let sql = "INSERT INTO mails (id, row) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET row = excluded.row";
            to.push(statement(sql, [key(&*mail.id.0), json::<Mail>(mail).into()]));
        }
        Record::MailOver(id) => to.push(statement("DELETE FROM mails WHERE id = ?1", [key(&*id.0)])),
        Record::MailPause(failures, until) => {
            to.push(fact("mail_failures", u64::from(*failures)));
            to.push(fact("mail_pause_until", until.0));
        }
        Record::OrphanReported(provider, handle) => {
            let sql = "INSERT INTO told_orphans (provider, handle, row) VALUES (?1, ?2, ?3)
                       ON CONFLICT (provider, handle) DO UPDATE SET row = excluded.row";
            to.push(statement(sql, [provider.as_str().into(), key(handle), json(&(provider, handle)).into()]));
        }
        Record::OrphanOver(provider, handle) => {
            let sql = "DELETE FROM told_orphans WHERE provider = ?1 AND handle = ?2";
            to.push(statement(sql, [provider.as_str().into(), key(handle)]));
        }
        Record::LeasesExtended(Some(by)) => {
            to.push(fact("leases_extended", u64::try_from(by.as_millis()).unwrap_or(u64::MAX)));
        }
        Record::LeasesExtended(None) => to.push(no_fact("leases_extended")),
        Record::AlarmTold(Some(at)) => to.push(fact("alarm_told", at.0)),
        Record::AlarmTold(None) => to.push(no_fact("alarm_told")),
        Record::Entry(entry) => journal::add(entry, to),
    }
}

const NEW_BUILD: &str = "INSERT INTO builds (id, state, live, message_id, spec, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, live = excluded.live, message_id = excluded.message_id,
        spec = excluded.spec, status = excluded.status";

fn fact(name: &str, value: u64) -> Statement {
    let sql = "INSERT INTO facts (name, value) VALUES (?1, ?2)
               ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    statement(sql, [name.into(), sql_number(value).into()])
}

fn no_fact(name: &str) -> Statement {
    statement("DELETE FROM facts WHERE name = ?1", [name.into()])
}
