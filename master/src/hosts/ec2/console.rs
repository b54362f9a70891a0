//! Evidence of an instance that never attached: AWS's reason for its state, and its console output.

use super::client::Client;
use super::error::call_error;
use super::terminate::by;
use super::{Ec2, read};
use crate::core::record::Host;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Number of bytes at the end of the console output that are evidence.
const CONSOLE: usize = 8 << 10;

impl Ec2 {
    pub(super) async fn state_and_output(&self, host: &Host) -> Option<String> {
        let spec = read(host.launch.as_ref()?).ok()?;
        let client = match self.places.at(&spec.place).await {
            Ok(client) => client,
            Err(error) => return Some(format!("(the console output cannot be read: {error})")),
        };
        let instance = host.handle.as_deref().filter(|handle| handle.starts_with("i-"))?;
        let mut text = state(&client, instance).await;
        // AWS keeps the newest output only for machines on its own hypervisor. For others there is the output of the
        // boot.
        for latest in [true, false] {
            match client.ec2.get_console_output().instance_id(instance).latest(latest).send().await {
                Ok(answer) => {
                    let output = answer.output().map(decoded).unwrap_or_default();
                    if !output.is_empty() {
                        text.push_str(tail(&output));
                        break;
                    }
                }
                Err(error) if !latest => text.push_str(&format!("({})\n", call_error("read the console", &error).text)),
                Err(_) => {}
            }
        }
        (!text.is_empty()).then_some(text)
    }
}

async fn state(client: &Client, instance: &str) -> String {
    let answer = match client.ec2.describe_instances().filters(by("instance-id", instance)).send().await {
        Ok(answer) => answer,
        Err(error) => return format!("({})\n", call_error("query the instance", &error).text),
    };
    let Some(found) = answer.reservations().iter().flat_map(|r| r.instances()).next() else {
        return format!("AWS does not know the instance {instance}\n");
    };
    let state = found.state().and_then(|s| s.name()).map_or("in no state", |name| name.as_str());
    let mut text = format!("instance {instance} is {state}");
    if let Some(message) = found.state_reason().and_then(|reason| reason.message()) {
        text.push_str(&format!(": {message}"));
    } else if let Some(reason) = found.state_transition_reason().filter(|reason| !reason.is_empty()) {
        text.push_str(&format!(": {reason}"));
    }
    text.push('\n');
    text
}

fn decoded(output: &str) -> String {
    let plain: String = output.split_ascii_whitespace().collect();
    match STANDARD.decode(&plain) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => output.to_owned(),
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(CONSOLE);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}
