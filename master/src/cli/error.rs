//! Why a command did not do what it was asked.

use super::exit::Exit;

#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// Bad usage, or a bad file.
    #[error("{0}")]
    Usage(String),
    /// The master cannot be reached, or cannot answer.
    #[error("{0}")]
    Unreachable(String),
    /// There is no such thing, or the master refuses.
    #[error("{0}")]
    Refused(String),
    /// Whoever read our output has closed it: nothing more to do, and nothing to say.
    #[error("the output is closed")]
    Closed,
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Output(error) }
    }
}

impl CliError {
    /// Prints it, unless nobody needs to know. What the command ends with.
    pub(super) fn report(&self) -> Exit {
        let exit = match self {
            Self::Closed => return Exit::Success,
            Self::Usage(_) => Exit::Usage,
            Self::Unreachable(_) => Exit::Unreachable,
            Self::Refused(_) => Exit::Refused,
            Self::Output(_) => Exit::Failure,
        };
        super::output::say(&self.to_string());
        exit
    }
}
