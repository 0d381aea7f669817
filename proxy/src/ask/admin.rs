//! HTTP to an admin listener, without any other program: an image may hold none.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

/// An admin listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admin(pub(super) SocketAddr);

impl Admin {
    /// What it tells.
    pub(super) fn get(self, target: &str) -> anyhow::Result<String> {
        self.ask("GET", target)
    }

    /// What it says to something that it is to do.
    pub(super) fn post(self, target: &str) -> anyhow::Result<String> {
        self.ask("POST", target)
    }

    fn ask(self, method: &str, target: &str) -> anyhow::Result<String> {
        let (is_good, answer) = self.begin(method, target)?;
        let mut body = String::new();
        let mut answer = answer.take(MAX_ANSWER_BYTES);
        answer
            .read_to_string(&mut body)
            .context("no answer in time")?;
        ensure!(answer.limit() > 0, "the proxy's answer is too long");
        ensure!(is_good, "{}", body.trim());
        Ok(body)
    }

    /// Lines for as long as there are some. Each comes without its end.
    pub(super) fn lines(
        self,
        target: &str,
        mut each: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (is_good, mut answer) = self.begin("GET", target)?;
        // The next line may be a long time coming.
        answer.get_ref().set_read_timeout(None)?;
        let mut line = String::new();
        while answer.read_line(&mut line)? > 0 {
            ensure!(is_good, "{}", line.trim());
            each(line.trim_end())?;
            line.clear();
        }
        Ok(())
    }

    /// Asks, and reads the head of the answer. In HTTP/1.0, so that its body ends with the connection.
    fn begin(self, method: &str, target: &str) -> anyhow::Result<(bool, BufReader<TcpStream>)> {
        let address = self.0;
        let mut stream = TcpStream::connect_timeout(&address, LIMIT)
            .with_context(|| format!("cannot reach the proxy at {address}"))?;
        stream.set_read_timeout(Some(LIMIT))?;
        let request =
            format!("{method} {target} HTTP/1.0\r\nhost: {address}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = BufReader::new(stream);
        let mut status = None;
        loop {
            let mut line = String::new();
            let mut head = (&mut answer).take(MAX_LINE_BYTES);
            let read = head.read_line(&mut line).context("no answer in time")?;
            ensure!(read > 0, "the proxy ended the connection without an answer");
            match (line.trim_end(), &status) {
                ("", Some(is_good)) => return Ok((*is_good, answer)),
                (_, None) if line.starts_with("HTTP/1.") => {
                    let code = line.split(' ').nth(1).unwrap_or_default();
                    status = Some(code.starts_with('2'));
                }
                (_, None) => bail!("the proxy's answer is no HTTP"),
                _ => {}
            }
        }
    }
}

/// A path with those of the values that there are.
pub(super) fn query(path: &str, values: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in values {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    match query.finish() {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

const LIMIT: Duration = Duration::from_secs(5);
const MAX_LINE_BYTES: u64 = 16 << 10;
/// More than all connections that may be open.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
