//! As much HTTP/1.1 as a load maker needs: one GET, one connection.

mod response;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Namespace;
pub use response::Response;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Gets a page from inside a namespace, within 5 s, on a connection of its own. Any status is a
/// success.
///
/// The target is an address and port, and as the case may be a path: `10.77.0.11:80`,
/// `http://[fd77::11]:80/healthz`. Names are not resolved; curl does that.
pub fn http_get(from: &Namespace, target: &str) -> Result<Response> {
    let target: Target = target.parse()?;
    from.enter(|| target.get(TIMEOUT, TIMEOUT))
}

/// What to get, and where.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    addr: SocketAddr,
    path: String,
}

impl Target {
    /// Gets it from the namespace of the calling thread; `total` includes the connecting.
    pub(crate) fn get(&self, connect: Duration, total: Duration) -> Result<Response> {
        let deadline = Instant::now() + total;
        self.exchange(connect, deadline)
            .with_context(|| format!("GET {self}"))
    }

    fn exchange(&self, connect: Duration, deadline: Instant) -> Result<Response> {
        let connect = connect.min(left(deadline)?);
        let mut stream = TcpStream::connect_timeout(&self.addr, connect).context("connect")?;
        let client = stream.local_addr()?;
        stream.set_write_timeout(Some(left(deadline)?))?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.path, self.addr
        );
        stream.write_all(request.as_bytes()).context("send")?;
        let (mut received, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            stream.set_read_timeout(Some(left(deadline)?))?;
            let length = stream.read(&mut chunk).context("receive")?;
            received.extend_from_slice(chunk.get(..length).unwrap_or_default());
            if let Some(response) = Response::parse(client, &received, length == 0)? {
                return Ok(response);
            }
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let (addr, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let Ok(addr) = addr.parse() else {
            bail!("target {text:?}: must be ADDRESS:PORT or http://ADDRESS:PORT/PATH");
        };
        let path = if path.is_empty() { "/" } else { path }.to_owned();
        Ok(Self { addr, path })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.addr, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_an_address_and_a_path() {
        let whole = |text: &str| text.parse::<Target>().map(|target| target.to_string());
        assert_eq!(whole("10.0.0.1:80").unwrap(), "http://10.0.0.1:80/");
        assert_eq!(whole("http://[::1]:80/a/b").unwrap(), "http://[::1]:80/a/b");
        for bad in ["web:80", "10.0.0.1", "https://10.0.0.1:80", ""] {
            assert!(whole(bad).is_err(), "{bad}");
        }
    }
}
