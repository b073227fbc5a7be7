//! HTTP/1.1 by hand: what is sent and what comes back is all in sight.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// A request and its answer, then the connection ends.
pub(crate) fn exchange(
    mut stream: impl Read + Write,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    // A server that refuses the body may close before it is all there.
    let _ = stream.write_all(body);
    read_answer(stream, method == "HEAD")
}

pub(crate) fn get(stream: impl Read + Write, path: &str) -> Answer {
    exchange(stream, "GET", path, &[], b"")
}

/// Reads an answer; with `Connection: close`, or the first one of a connection.
pub(crate) fn read_answer(stream: impl Read, no_body: bool) -> Answer {
    let mut reader = BufReader::new(stream);
    let (status, headers) = read_head(&mut reader);
    let header = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v);
    let mut body = Vec::new();
    if no_body {
        reader.read_to_end(&mut body).unwrap();
        assert!(body.is_empty(), "the answer has a body: {}", String::from_utf8_lossy(&body));
    } else if header("transfer-encoding").is_some_and(|value| value == "chunked") {
        while let Some(chunk) = read_chunk(&mut reader) {
            body.extend(chunk);
        }
    } else if let Some(length) = header("content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
    } else {
        reader.read_to_end(&mut body).unwrap();
    }
    Answer { status, headers, body }
}

fn read_head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("no answer but {line:?}"));
    let status = status[..3].parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { return (status, headers) };
        headers.push((name.to_owned(), value.to_owned()));
    }
}

/// The next chunk; `None` at the proper end.
fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let size = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("cut off at {line:?}"));
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).unwrap();
    chunk.truncate(size);
    (size > 0).then_some(chunk)
}

/// Lines of an answer that has no end.
pub(crate) struct Follow {
    reader: BufReader<UnixStream>,
    rest: Vec<u8>,
}

/// The next line of a stream; `None` if it ended properly.
pub(crate) trait Lines {
    fn next_line(&mut self) -> Option<String>;
}

impl Follow {
    pub(crate) fn new(mut stream: UnixStream, path: &str) -> Follow {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let (status, _) = read_head(&mut reader);
        assert_eq!(status, 200);
        Follow { reader, rest: vec![] }
    }
}

impl Lines for Follow {
    fn next_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            self.rest.extend(read_chunk(&mut self.reader)?);
        }
    }
}
