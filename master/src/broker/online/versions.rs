//! Versions of RabbitMQ: which are supported, and whether the nodes of a cluster have the same.

use std::collections::BTreeSet;

/// The oldest supported series.
const OLDEST: (u32, u32) = (3, 10);

/// Why a version is not supported. Nothing is said of one that cannot be read.
pub(super) fn unsupported(version: &str) -> Option<String> {
    let (major, minor) = OLDEST;
    series(version)
        .filter(|series| *series < OLDEST)
        .map(|_| format!("it is RabbitMQ {version}, and rouse needs {major}.{minor} or later"))
}

/// Says that nodes have different versions, if they have: pairs of a node and its version.
pub(super) fn mixed(nodes: &[(String, String)]) -> Option<String> {
    let versions: BTreeSet<&str> = nodes.iter().map(|(_, version)| version.as_str()).collect();
    if versions.len() < 2 {
        return None;
    }
    let each: Vec<String> = nodes.iter().map(|(node, version)| format!("{node}: {version}")).collect();
    Some(format!(
        "the nodes of the cluster have different versions of RabbitMQ ({}), which is supported only during an upgrade: \
         upgrade the others as well, and then run `rabbitmqctl enable_feature_flag all`",
        each.join(", ")
    ))
}

fn series(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, supported) in [("3.9.29", false), ("3.10.0", true), ("4.1.0-rc.1", true), ("unknown", true)] {
            assert_eq!(unsupported(version).is_none(), supported, "{version}");
        }
    }

    #[test]
    fn a_mixed_cluster_is_named() {
        let nodes = |versions: [&str; 3]| {
            let names = ["mq1", "mq2", "mq3"].into_iter().zip(versions);
            names.map(|(node, version)| (node.to_owned(), version.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(mixed(&nodes(["3.12.1", "3.12.1", "3.12.1"])), None);
        let said = mixed(&nodes(["3.12.1", "3.13.7", "3.12.1"])).unwrap_or_default();
        assert!(said.contains("mq1: 3.12.1, mq2: 3.13.7, mq3: 3.12.1"), "{said}");
    }
}
