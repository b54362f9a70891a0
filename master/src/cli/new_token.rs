//! `rouse token new`: makes a token, and writes its hash into the configuration if the user agrees. The master never gets
//! to know the token before somebody uses it.

use super::args::NewToken;
use super::client::Client;
use super::error::CliError;
use super::exit::Exit;
use super::output::{line, plain, say};
use super::terminate::agreed;
use crate::access::{OWN_TOKEN, Right, TokenHash};
use crate::config::{self, Config, Problem};
use crate::{api, files};
use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

/// Makes a token. Its text is the last line of the output, also if the master does not accept it yet.
pub(super) async fn run(args: &NewToken, server: Option<&str>, ca: Option<&Path>) -> Result<Exit, CliError> {
    let NewToken { name, may, config, write } = args;
    if !config::is_token_name(name) || name == OWN_TOKEN {
        let why = format!(
            "{name:?} cannot be the name of a token: 1 to 63 letters, digits, '-', '_' and '.', and not {OWN_TOKEN}"
        );
        return Err(CliError::Usage(why));
    }
    let token = files::random_token()?;
    let section = section(name, TokenHash::of(&token), may);
    if *write {
        append(config, &section)?;
    }
    line(&section)?;
    let mut written = *write;
    if !written && asks(config) && agreed(&format!("append this to {} and reload the master?", config.display()))? {
        append(config, &section)?;
        written = true;
    }
    let result = if written {
        reload(server, ca, config).await
    } else {
        say("nothing was written: add the section to the master's configuration, and reload the master");
        Ok(())
    };
    line(&token)?;
    result.map(|()| Exit::Success)
}

/// The section, without a line break at its end.
fn section(name: &str, hash: TokenHash, may: &[Right]) -> String {
    let rights =
        Right::ALL.into_iter().filter(|right| may.contains(right)).map(|right| format!("{:?}", right.as_str()));
    format!("[[token]]\nname = {name:?}\nhash = \"{hash}\"\nmay = [{}]", rights.collect::<Vec<_>>().join(", "))
}

/// Whether somebody is there who can be asked, and may write the file.
fn asks(config: &Path) -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal() && File::options().append(true).open(config).is_ok()
}

/// Appends a section to a configuration, unless that would make it wrong. The file keeps its owner and its mode, because
/// the master may be another user.
fn append(path: &Path, section: &str) -> Result<(), CliError> {
    let failed = |error: io::Error| CliError::Usage(format!("{} cannot be written: {error}", path.display()));
    let before = fs::read_to_string(path).map_err(failed)?;
    let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    let added = format!("{gap}\n{section}\n");
    let known = errors(&before, path);
    // What was wrong before may be wrong for this user alone, who may not read all files of the master.
    if let Some(new) = errors(&format!("{before}{added}"), path).iter().find(|error| !known.contains(error)) {
        return Err(CliError::Usage(format!("nothing was written, because the configuration would be wrong: {new}")));
    }
    let mut file = File::options().append(true).open(path).map_err(failed)?;
    file.write_all(added.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

fn errors(text: &str, path: &Path) -> Vec<Problem> {
    Config::parse(text, path).map(|_| Vec::new()).unwrap_or_else(|errors| errors.0)
}

async fn reload(server: Option<&str>, ca: Option<&Path>, config: &Path) -> Result<(), CliError> {
    say(&format!("the section is in {}", config.display()));
    let reloaded: api::Reloaded = Client::new(server, ca).await?.post("/api/reload").await.map_err(|error| {
        let why = |text: String| format!("the token is worth nothing until the master has read the file again: {text}");
        match error {
            CliError::Unreachable(text) => CliError::Unreachable(why(text)),
            CliError::Refused(text) => CliError::Refused(why(text)),
            other => other,
        }
    })?;
    for warning in &reloaded.warnings {
        say(&plain(&format!("warning: {warning}")));
    }
    for key in &reloaded.needs_restart {
        say(&plain(&format!("{key} has changed and takes effect when the master is restarted")));
    }
    say("the master has read it, and accepts the token");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_section_is_appended_only_if_the_file_stays_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rouse.toml");
        let hash = TokenHash::of("t");
        let made = section("ci-bot", hash, &[Right::Operate, Right::Build, Right::Build]);
        assert_eq!(made, format!("[[token]]\nname = \"ci-bot\"\nhash = \"{hash}\"\nmay = [\"build\", \"operate\"]"));
        // A key that is wrong already is no reason to refuse.
        fs::write(&path, "[limits]\nmax_hosts = 0").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        append(&path, &made).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("[limits]\nmax_hosts = 0\n\n{made}\n"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let again = section("ci-bot", TokenHash::of("u"), &[Right::Read]);
        let refused = append(&path, &again).unwrap_err().to_string();
        assert!(refused.contains("a token named ci-bot is given on line 5 already"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert!(append(&dir.path().join("none.toml"), &made).is_err());
    }
}
