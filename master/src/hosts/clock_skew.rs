//! A cloud refuses the login of a machine whose clock is wrong, but does not report that this is the reason. The `Date`
//! header of its answer shows the difference.

use crate::clock;
use rouse_shared::Timestamp;
use std::time::{Duration, UNIX_EPOCH};

/// Smaller differences are not reported: a date has whole seconds, and an answer takes time to arrive.
const TOLERATED: Duration = Duration::from_secs(30);

/// What to add to the text of a refusal with this `Date` header: how wrong this machine's clock is. Empty if it is right.
pub fn remark(date: Option<&str>) -> String {
    remark_at(clock::wall(), date)
}

fn remark_at(now: Timestamp, date: Option<&str>) -> String {
    let date = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok());
    let Some(theirs) = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok()) else { return String::new() };
    let theirs = Timestamp(0) + theirs;
    let (off, which) = match theirs > now {
        true => (theirs.since(now), "behind"),
        false => (now.since(theirs), "ahead of"),
    };
    if off <= TOLERATED {
        return String::new();
    }
    format!("; this machine's clock is {} s {which} the cloud's", off.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_said_to_be_wrong_and_by_how_much() {
        let date = "Tue, 15 Nov 1994 08:12:31 GMT";
        let there = Timestamp(784_887_151_000);
        assert_eq!(remark_at(there, Some(date)), "");
        assert_eq!(remark_at(there + TOLERATED, Some(date)), "", "an answer takes its time");
        let behind = Timestamp(there.0 - 600_400);
        assert_eq!(remark_at(behind, Some(date)), "; this machine's clock is 600 s behind the cloud's");
        let ahead = there + Duration::from_secs(3_600);
        assert_eq!(remark_at(ahead, Some(date)), "; this machine's clock is 3600 s ahead of the cloud's");
        for none in [None, Some(""), Some("yesterday")] {
            assert_eq!(remark_at(ahead, none), "");
        }
    }
}
