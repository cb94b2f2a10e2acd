//! What the next node has to be told, as commands to be typed there.

use std::{fmt::Write as _, path::Path};

use portolan_gossip::Keyring;

use super::failure::{Failure, with_causes};
use crate::api::Joining;

/// Where the next node's key goes.
const KEY_FILE: &str = "/etc/portolan.key";

/// The commands, with the key in them: as secret as the key.
///
/// # Errors
/// The key file of the agent cannot be read, or its key is not the one in use.
pub(crate) fn commands(joining: &Joining) -> Result<String, Failure> {
    let key = match (&joining.key_file, &joining.key) {
        (Some(file), Some(id)) => Some(read(file, id)?),
        _ => None,
    };
    Ok(text(joining, key.as_deref()))
}

/// The key that packets are sent with.
fn read(file: &Path, id: &str) -> Result<String, Failure> {
    let ring = Keyring::load(file).map_err(|error| Failure::failed(with_causes(&error)))?;
    let in_use = ring
        .list()
        .iter()
        .any(|key| key.primary && key.id.to_string() == id);
    if !in_use {
        return Err(Failure::failed(format!(
            "{}: its first key is not the one in use, {id}, since the keys were rotated; put that key there first",
            file.display()
        )));
    }
    // Others of the ring are on their way out.
    Ok(ring.reveal().lines().next().unwrap_or_default().to_owned())
}

fn text(joining: &Joining, key: Option<&str>) -> String {
    let mut text = "On the next node, as root:\n\n".to_owned();
    // Writing to a string does not fail.
    let secret = match key {
        Some(key) => {
            let _ = writeln!(text, "  (umask 077; echo '{key}' > {KEY_FILE})");
            format!("--key-file {KEY_FILE}")
        }
        None => "--insecure".to_owned(),
    };
    let _ = write!(
        text,
        "  portolan agent {secret} --join {} --data-path-port {}",
        joining.join, joining.data_path_port
    );
    if joining.cluster != "portolan" {
        let _ = write!(text, " --cluster {}", joining.cluster);
    }
    text.push_str(
        "\n\nIf it has several addresses, say by --advertise which of them others reach.\n",
    );
    if joining.swarm {
        text.push_str(
            "On a node of this Swarm --join, --data-path-port and --advertise can be left out: its engine knows them.\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joining() -> Joining {
        Joining {
            join: "10.77.0.11:7948".parse().unwrap(),
            key_file: None,
            key: None,
            cluster: "portolan".into(),
            data_path_port: 4799,
            swarm: false,
        }
    }

    #[test]
    fn the_command_is_whole() {
        let shown = text(&joining(), Some("a2V5"));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2], "  (umask 077; echo 'a2V5' > /etc/portolan.key)");
        assert_eq!(
            lines[3],
            "  portolan agent --key-file /etc/portolan.key --join 10.77.0.11:7948 --data-path-port 4799"
        );
        assert!(!shown.contains("Swarm"));
        let other = Joining {
            cluster: "blue".into(),
            swarm: true,
            ..joining()
        };
        let shown = text(&other, None);
        assert!(shown.contains("agent --insecure --join") && shown.contains(" --cluster blue\n"));
        assert!(shown.contains("On a node of this Swarm"));
    }

    #[test]
    fn a_key_that_is_not_in_use_is_not_given_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, format!("{}\n", "6b".repeat(32))).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let id = Keyring::load(&file).unwrap().list()[0].id.to_string();
        assert!(read(&file, &id).is_ok_and(|key| !key.is_empty()));
        assert!(read(&file, "00000000").is_err());
    }
}
