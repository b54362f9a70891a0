//! Why a command failed.

use super::exit::Exit;

#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// Bad usage, or a bad file.
    #[error("{0}")]
    Usage(String),
    /// The master cannot be reached, or cannot answer.
    #[error("{0}")]
    Unreachable(String),
    /// Something does not exist, or the master refuses.
    #[error("{0}")]
    Refused(String),
    /// The reader of the output has closed it, so nothing more can be printed.
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
    /// Prints the error, unless the output is closed. Returns the exit code.
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
