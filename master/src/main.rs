//! The program `rouse`: the master, and the commands that talk to one.

use clap::Parser as _;
use rouse_master::{cli, clock};
use rouse_shared::Timestamp;
use std::path::Path;
use std::process::ExitCode;

/// What this program does without a master. It has none built in yet: these commands say so and fail.
struct Program;

impl Program {
    fn lacks(command: &str) -> ExitCode {
        eprintln!("rouse: this program was built without `rouse {command}`");
        ExitCode::from(2)
    }
}

impl cli::Local for Program {
    fn master(&self, _: &Path) -> ExitCode {
        Self::lacks("master")
    }

    fn check(&self, _: &Path, _: bool) -> ExitCode {
        Self::lacks("check")
    }

    fn demo(&self, _: Option<&Path>) -> ExitCode {
        Self::lacks("demo")
    }

    fn now(&self) -> Timestamp {
        clock::now()
    }
}

fn main() -> ExitCode {
    cli::run(&cli::Cli::parse(), &Program)
}
