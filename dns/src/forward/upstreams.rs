//! Which resolvers the node uses.

use std::{fmt, net::SocketAddr};

use hickory_server::resolver::system_conf::parse_resolv_conf;

use crate::Upstreams;

/// The port of resolvers in resolv.conf(5), which cannot name another.
const PORT: u16 = 53;

/// Where the list comes from.
#[derive(Debug)]
pub(super) struct Source(Upstreams);

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Upstreams::Explicit(_) => f.write_str("dns.upstreams"),
            Upstreams::ResolvConf(path) => path.display().fmt(f),
        }
    }
}

impl Source {
    pub(super) const fn new(upstreams: Upstreams) -> Self {
        Self(upstreams)
    }

    /// The list as it is now. A file of this size is read as fast as it is looked at.
    ///
    /// # Errors
    /// Why there is none, worded for the user.
    pub(super) async fn read(&self) -> Result<Vec<SocketAddr>, String> {
        match &self.0 {
            Upstreams::Explicit(servers) => Ok(servers.clone()),
            Upstreams::ResolvConf(path) => {
                let text = tokio::fs::read(path).await;
                let text = text.map_err(|error| format!("cannot read {self}: {error}"))?;
                nameservers(&text).map_err(|error| format!("cannot use {self}: {error}"))
            }
        }
    }
}

fn nameservers(text: &[u8]) -> Result<Vec<SocketAddr>, impl fmt::Display> {
    parse_resolv_conf(text).map(|(config, _)| {
        let servers = config.name_servers().iter();
        servers.map(|s| SocketAddr::new(s.ip, PORT)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_count_and_what_is_wrong_is_passed_over() {
        let text = "# comment\nsearch corp\nnameserver 10.0.0.1 \n\tnameserver ::1\n\
                    nameserver x\nnameserver\noptions ndots:1 nosuch:2\nnosuch line\n";
        let found = nameservers(text.as_bytes()).map_err(|e| e.to_string());
        let found: Vec<String> = found.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:53", "[::1]:53"]);
        assert!(nameservers(b"search corp\n").is_err());
    }
}
