//! Whether other users can read a file with a secret in it.

use std::path::Path;

/// The groups that may have access to a file with a secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Groups {
    /// These, by their numbers.
    These(Vec<u32>),
    /// Any, because nobody knows yet which one the service will have.
    Any,
}

/// Why a file with this mode and group must not have a secret in it, and the command that corrects it; none if it may.
pub fn exposure(path: &Path, mode: u32, group: u32, own: &Groups) -> Option<String> {
    let foreign = mode & 0o060 != 0 && matches!(own, Groups::These(own) if !own.contains(&group));
    let who = match (mode & 0o006 != 0, foreign) {
        (false, false) => return None,
        (true, _) => "all users of the machine have".to_owned(),
        (false, true) => format!("group {group}, which is not that of the service, has"),
    };
    let (path, right) = (path.display(), if foreign { 0o600 } else { mode & 0o640 });
    let mode = mode & 0o7777;
    Some(format!("{who} access to {path} (mode {mode:04o}), which has a secret in it: run `chmod {right:03o} {path}`"))
}

/// Why a directory of this owner and mode must not hold what this program relies on, and what to do about it; none if it
/// may. `own` are the users that the program trusts, besides root.
pub fn foreign_directory(path: &Path, owner: u32, mode: u32, own: &[u32]) -> Option<String> {
    let path = path.display();
    if owner != 0 && !own.contains(&owner) {
        return Some(format!(
            "{path} belongs to the user with the id {owner}, who could replace what is in it: run `chown` on it, or use \
             another directory"
        ));
    }
    let mode = mode & 0o7777;
    (mode & 0o002 != 0)
        .then(|| format!("all users of the machine can write to {path} (mode {mode:04o}): run `chmod o-w {path}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_others_is_foreign() {
        for (owner, mode, foreign) in [
            (0, 0o711, false),
            (7, 0o700, false),
            (7, 0o770, false),
            (8, 0o700, true),
            (0, 0o777, true),
            (0, 0o1777, true),
            (7, 0o703, true),
        ] {
            assert_eq!(foreign_directory(Path::new("/x"), owner, mode, &[7]).is_some(), foreign, "{owner} {mode:o}");
        }
    }

    #[test]
    fn others_and_foreign_groups_have_no_access() {
        let own = Groups::These(vec![0, 7]);
        for (mode, group, right) in [
            (0o600, 9, None),
            (0o400, 9, None),
            (0o640, 7, None),
            (0o660, 0, None),
            (0o644, 7, Some("chmod 640")),
            (0o644, 9, Some("chmod 600")),
            (0o604, 9, Some("chmod 600")),
            (0o602, 9, Some("chmod 600")),
            (0o666, 7, Some("chmod 640")),
            (0o640, 9, Some("chmod 600")),
            (0o620, 9, Some("chmod 600")),
        ] {
            let found = exposure(Path::new("/x"), 0o100_000 | mode, group, &own);
            match (right, &found) {
                (None, None) => {}
                (Some(right), Some(found)) => assert!(found.ends_with(&format!("run `{right} /x`")), "{found}"),
                _ => panic!("{mode:o} {group}: {found:?}"),
            }
        }
        assert_eq!(exposure(Path::new("/x"), 0o640, 9, &Groups::Any), None);
        assert!(exposure(Path::new("/x"), 0o644, 9, &Groups::Any).is_some());
    }
}
