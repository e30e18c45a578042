//! Any bytes as the body of an OTLP/HTTP request, and any bytes at all on the connection: every connection ends, an answer
//! is HTTP, and what is accepted is whole.

use std::sync::LazyLock;

use super::server::{Server, exclusive};

static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

const PATHS: [&str; 4] = ["/v1/traces", "/v1/metrics", "/v1/logs", "/"];
const TYPES: [&str; 4] = [
    "application/x-protobuf",
    "application/json",
    "application/json; charset=utf-8",
    "text/plain",
];
const ENCODINGS: [&str; 8] = ["", "gzip", "zstd", "deflate", "snappy", "x-snappy-framed", "lz4", "br"];

/// One input. The first byte says what it is.
pub fn run(data: &[u8]) {
    let Some((&[how, kind], rest)) = data.split_first_chunk() else {
        return;
    };
    let request = match how % 3 {
        0 => rest.to_vec(),
        how => {
            let path = PATHS[usize::from(kind) % 4];
            let content_type = TYPES[usize::from(kind >> 2) % 4];
            let encoding = ENCODINGS[usize::from(kind >> 4) % 8];
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: {content_type}\r\n\
                 content-encoding: {encoding}\r\n"
            );
            let mut request = head.into_bytes();
            if how == 1 {
                request.extend(format!("content-length: {}\r\n\r\n", rest.len()).bytes());
                request.extend(rest);
            } else {
                request.extend(b"transfer-encoding: chunked\r\n\r\n");
                for chunk in rest.chunks(usize::from(kind) + 1) {
                    request.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    request.extend(chunk);
                    request.extend(b"\r\n");
                }
                request.extend(b"0\r\n\r\n");
            }
            request
        }
    };
    let _turn = exclusive();
    let server = &*SERVER;
    let answer = server
        .runtime
        .block_on(Server::exchange(server.http, &request, how % 3 == 0));
    // Bytes that begin as HTTP/2 do are answered in HTTP/2.
    let is_http = answer.is_empty() || answer.starts_with(b"HTTP/1.") || request.starts_with(b"PRI ");
    assert!(is_http, "{:?}", String::from_utf8_lossy(&answer));
    let head = answer.split(|&byte| byte == b'\n').take_while(|line| line.len() > 1);
    let mut head = head.map(|line| line.trim_ascii_end().to_ascii_lowercase());
    let is_refusal = head.next().is_some_and(|line| line.starts_with(b"http/1.1 4"));
    let is_empty = head.any(|line| line == b"content-length: 0");
    assert!(!(is_refusal && is_empty), "no status message");
    if how % 3 != 0 {
        assert!(
            !answer.starts_with(b"HTTP/1.1 5"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
        assert!(answer.starts_with(b"HTTP/1.1 "), "no answer");
    }
    server.check_journal();
}
