//! Which resolvers the node uses.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::Upstreams;

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
            Upstreams::ResolvConf(path) => match tokio::fs::read(path).await {
                Ok(text) => Ok(nameservers(&String::from_utf8_lossy(&text))),
                Err(error) => Err(format!("cannot read {}: {error}", path.display())),
            },
        }
    }
}

/// The `nameserver` lines, each once. Addresses with a zone (`fe80::1%eth0`) need one as a number.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        if let Some(server) = words.next().and_then(server)
            && !servers.contains(&server)
        {
            servers.push(server);
        }
    }
    servers
}

fn server(word: &str) -> Option<SocketAddr> {
    match word.parse::<IpAddr>() {
        Ok(ip) => Some(SocketAddr::new(ip, 53)),
        Err(_) => format!("[{word}]:53").parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_count_and_nothing_else() {
        let text = "# comment\nsearch corp\nnameserver 10.0.0.1 \n\tnameserver ::1\n\
                    nameserver fe80::1%2\nnameserver x\nnameserver\noptions ndots:1\nnameserver 10.0.0.1\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.1:53", "[::1]:53", "[fe80::1%2]:53"]);
    }
}
