//! Waits for a build: reports progress, receives changes, and continues to wait if the master is away for a while.

use super::client::Client;
use super::error::CliError;
use super::output;
use crate::api;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Response;
use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

/// How long a followed master may be away. A restart takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// First and longest pause between tries to reach it.
const FIRST_TRY: Duration = Duration::from_millis(100);
const LAST_TRY: Duration = Duration::from_secs(2);
/// Interval of the spinner's frames.
const FRAME: Duration = Duration::from_millis(120);

/// Writes progress to stderr: permanent lines, and what the command is waiting for.
pub(super) struct ProgressReporter {
    terminal: bool,
    spinner: Option<ProgressBar>,
    waiting: String,
}

impl ProgressReporter {
    pub(super) fn new() -> Self {
        Self { terminal: stderr().is_terminal(), spinner: None, waiting: String::new() }
    }

    /// Writes a permanent line.
    pub(super) fn say(&self, text: &str) {
        let text = output::plain(text);
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| output::say(&text)),
            None => output::say(&text),
        }
    }

    /// Shows what the command is waiting for: with a spinner on a terminal, otherwise as a line when it changes.
    pub(super) fn waiting(&mut self, text: &str) {
        let text = output::plain(text);
        if !self.terminal {
            if self.waiting != text {
                output::say(&text);
                self.waiting = text;
            }
            return;
        }
        let spinner = self.spinner.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
            spinner.enable_steady_tick(FRAME);
            spinner
        });
        spinner.set_message(text);
    }

    /// Shows with a spinner what is running. Nothing if stderr is not a terminal.
    pub(super) fn spinning(&mut self, text: &str) {
        if self.terminal {
            self.waiting(text);
        }
    }

    /// Removes the spinner, so that the log can use the screen.
    pub(super) fn quiet(&mut self) {
        self.waiting.clear();
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

/// Sends a request. If the master cannot be reached, tries again for up to a minute.
pub(super) async fn patiently<T>(
    progress: &ProgressReporter,
    ask: impl AsyncFn() -> Result<T, CliError>,
) -> Result<T, CliError> {
    let mut unreachable = match ask().await {
        Err(CliError::Unreachable(text)) => text,
        answered => return answered,
    };
    progress.say(&format!("{unreachable}; retrying for {} s", PATIENCE.as_secs()));
    let again = async {
        let mut pause = FIRST_TRY;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LAST_TRY);
            match ask().await {
                Err(CliError::Unreachable(text)) => unreachable = text,
                answered => return answered,
            }
        }
    };
    match tokio::time::timeout(PATIENCE, again).await {
        Ok(answered) => {
            progress.say("the master is back");
            answered
        }
        Err(_) => Err(CliError::Unreachable(format!(
            "{unreachable}; gave up after {} s, the build goes on",
            PATIENCE.as_secs()
        ))),
    }
}

/// The changes of one build.
pub(super) struct Changes {
    build: u64,
    stream: Option<Response>,
    text: Vec<u8>,
}

impl Changes {
    pub(super) fn of(build: u64) -> Self {
        Self { build, stream: None, text: Vec::new() }
    }

    /// Waits until the build has changed or may have changed, but not longer than `at_most`.
    pub(super) async fn next(&mut self, client: &Client, at_most: Duration) {
        // In both cases the build is read next.
        tokio::time::timeout(at_most, self.changed(client)).await.ok();
    }

    async fn changed(&mut self, client: &Client) {
        let Some(stream) = &mut self.stream else {
            match client.events().await {
                Ok(stream) => self.stream = Some(stream),
                Err(_) => std::future::pending().await,
            }
            // The caller sees earlier changes when it reads the build.
            return;
        };
        while let Ok(Some(bytes)) = stream.chunk().await {
            self.text.extend_from_slice(&bytes);
            let mut ours = false;
            while let Some(end) = self.text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                ours |= concerns(&String::from_utf8_lossy(&event), self.build);
            }
            if ours {
                return;
            }
        }
        self.stream = None;
        self.text.clear();
        std::future::pending().await
    }
}

fn is_of(change: &api::Change, build: u64) -> bool {
    matches!(change, api::Change::Build(change) if change.id.0.0 == build)
}

fn concerns(event: &str, build: u64) -> bool {
    event.lines().any(|line| line == "event: build")
        && event
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .any(|data| serde_json::from_str::<api::Change>(data).is_ok_and(|change| is_of(&change, build)))
}

#[cfg(test)]
mod tests {
    use super::concerns;

    #[test]
    fn only_the_own_build_wakes() {
        assert!(concerns(
            "event: build\ndata: {\"kind\":\"build\",\"id\":\"12\",\"state\":\"running\",\"worker\":null,\"at\":\"2026-11-23T12:00:00Z\"}\n\n",
            12
        ));
        for other in [
            "event: build\ndata: {\"kind\":\"build\",\"id\":\"1\",\"state\":\"running\",\"worker\":null,\"at\":\"2026-11-23T12:00:00Z\"}\n\n",
            "event: host\ndata: {\"id\":\"12\"}\n\n",
            ":\n\n",
            "event: build\ndata: {\n\n",
        ] {
            assert!(!concerns(other, 12), "{other:?}");
        }
    }
}
