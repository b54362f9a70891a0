//! The exit codes of all commands. `--help` prints them, and docs/commands.md lists them.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// The command succeeded.
    Success,
    /// The build failed, an audit found differences, the person answered no, or the output cannot be written.
    Failure,
    /// Bad usage or configuration; clap ends with the same code.
    Usage,
    /// The master cannot be reached.
    Unreachable,
    /// Something does not exist, or the master refuses.
    Refused,
    /// The build was lost.
    Lost,
    /// The build was cancelled.
    Cancelled,
    /// Ctrl-C while following. The code is what shells use for a program that a signal has ended.
    Interrupted,
}

impl Exit {
    const ALL: [Self; 8] = [
        Self::Success,
        Self::Failure,
        Self::Usage,
        Self::Unreachable,
        Self::Refused,
        Self::Lost,
        Self::Cancelled,
        Self::Interrupted,
    ];

    /// The number.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::Unreachable => 3,
            Self::Refused => 4,
            Self::Lost => 5,
            Self::Cancelled => 6,
            Self::Interrupted => 130,
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => {
                "the build failed, an audit found differences, you answered no, or the output cannot be written"
            }
            Self::Usage => "bad usage or configuration",
            Self::Unreachable => "the master cannot be reached",
            Self::Refused => "no such thing, or refused",
            Self::Lost => "the build was lost",
            Self::Cancelled => "the build was cancelled",
            Self::Interrupted => "interrupted while following; the build continues",
        }
    }

    /// The last paragraphs of `--help`.
    pub(super) fn help() -> String {
        let mut help = "Exit codes:\n".to_owned();
        for exit in Self::ALL {
            help.push_str(&format!("  {:>3}  {}\n", exit.code(), exit.meaning()));
        }
        help.push_str(
            "\nThe token for changes is ROUSE_TOKEN, otherwise the content of the file ROUSE_TOKEN_FILE, otherwise that of \
             /var/lib/rouse/api-token.",
        );
        help
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn the_documentation_lists_every_code() {
        let text = include_str!("../../../docs/commands.md");
        for exit in Exit::ALL {
            assert!(
                text.contains(&format!("| {} | {} |", exit.code(), exit.meaning())),
                "docs/commands.md has no row for {exit:?}: | {} | {} |",
                exit.code(),
                exit.meaning()
            );
        }
    }
}
