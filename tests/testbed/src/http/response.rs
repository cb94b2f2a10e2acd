//! Reading a response.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

/// An HTTP response, read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body; bytes that are no UTF-8 are replaced.
    pub body: String,
    /// The address and port that it was asked from, as the asking socket has them.
    pub client: SocketAddr,
}

impl Response {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The body without its first line's end and what follows.
    pub fn first_line(&self) -> &str {
        self.body.lines().next().unwrap_or_default()
    }

    /// The response in `received`, or none when more must be read. `closed`: the peer has
    /// closed, and no more comes.
    pub(crate) fn parse(client: SocketAddr, received: &[u8], closed: bool) -> Result<Option<Self>> {
        let Some(end) = find(received, b"\r\n\r\n") else {
            match (closed, received.len()) {
                (false, _) => return Ok(None),
                (true, 0) => bail!("closed without an answer"),
                (true, n) => bail!("closed after {n} bytes, within the headers"),
            }
        };
        let (head, body) = received.split_at(end);
        let body = body.get(4..).unwrap_or_default();
        let mut response = Self::of_head(client, &String::from_utf8_lossy(head))?;
        let Some(body) = response.whole_body(body, closed)? else {
            return Ok(None);
        };
        response.body = String::from_utf8_lossy(&body).into_owned();
        Ok(Some(response))
    }

    fn of_head(client: SocketAddr, head: &str) -> Result<Self> {
        let mut lines = head.lines();
        let first = lines.next().unwrap_or_default();
        let status = match first.split_once(' ') {
            Some((version, rest)) if version.starts_with("HTTP/1.") => {
                rest.get(..3).and_then(|code| code.parse().ok())
            }
            _ => None,
        };
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Self {
            status: status.with_context(|| format!("no HTTP status line: {first:?}"))?,
            headers,
            body: String::new(),
            client,
        })
    }

    /// The body's bytes when they are complete (RFC 9112, section 6.3).
    fn whole_body(&self, received: &[u8], closed: bool) -> Result<Option<Vec<u8>>> {
        if self.header("transfer-encoding") == Some("chunked") {
            return match unchunk(received)? {
                None if closed => bail!("closed within the chunked body"),
                body => Ok(body),
            };
        }
        let Some(length) = self.header("content-length") else {
            return Ok(closed.then(|| received.to_vec()));
        };
        let length: usize = length.parse().context("content-length")?;
        match received.get(..length) {
            Some(body) => Ok(Some(body.to_vec())),
            None if closed => bail!("closed after {} of {length} bytes", received.len()),
            None => Ok(None),
        }
    }
}

/// The joined chunks, or none when the last one is not there yet.
fn unchunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(end) = find(rest, b"\r\n") {
        let (line, after) = rest.split_at(end);
        let size = String::from_utf8_lossy(line);
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk {size:?}"))?;
        if size == 0 {
            return Ok(Some(body));
        }
        let (Some(chunk), Some(next)) = (after.get(2..2 + size), after.get(4 + size..)) else {
            return Ok(None);
        };
        body.extend_from_slice(chunk);
        rest = next;
    }
    Ok(None)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, closed: bool) -> Result<Option<Response>> {
        Response::parse(([192, 0, 2, 7], 40000).into(), text.as_bytes(), closed)
    }

    #[test]
    fn a_body_is_complete_by_its_length() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na\nb";
        let response = parse(text, false).unwrap().unwrap();
        assert_eq!((response.status, response.first_line()), (200, "a"));
        assert_eq!(parse(&text[..text.len() - 1], false).unwrap(), None);
        assert!(parse(&text[..text.len() - 1], true).is_err());
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let text = "HTTP/1.0 503 Busy\r\n\r\nlater";
        assert_eq!(parse(text, false).unwrap(), None);
        let response = parse(text, true).unwrap().unwrap();
        assert_eq!((response.status, response.body.as_str()), (503, "later"));
    }

    #[test]
    fn chunks_are_joined() {
        let text =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
        assert_eq!(parse(text, false).unwrap().unwrap().body, "abc");
        assert_eq!(parse(&text[..text.len() - 8], false).unwrap(), None);
        assert!(parse(&text[..text.len() - 8], true).is_err());
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(parse("", true).is_err());
        assert!(parse("HTTP/1.1 200 OK\r\n", true).is_err());
        assert!(parse("+PONG\r\n\r\n", false).is_err());
    }
}
