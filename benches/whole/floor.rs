//! The floor: what it costs to receive the same bytes over HTTP/1.1 and answer, and nothing else. Runs as a process of
//! its own, so that it is measured as everything else is.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Receives until it is killed; prints its address.
pub fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(receive(stream));
        }
    });
}

async fn receive(mut stream: tokio::net::TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut head = vec![0; 4096];
    let mut filled = 0;
    loop {
        match stream.read(&mut head[filled..]).await {
            Ok(0) | Err(_) => return,
            Ok(read) => filled += read,
        }
        let Some(end) = head[..filled].windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let text = String::from_utf8_lossy(&head[..end]).to_lowercase();
        let length = text.split("content-length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = Vec::with_capacity(length);
        body.extend_from_slice(&head[end + 4..filled]);
        while body.len() < length {
            if !matches!(stream.read_buf(&mut body).await, Ok(1..)) {
                return;
            }
        }
        filled = 0;
        std::hint::black_box(&body);
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await
            .is_err()
        {
            return;
        }
    }
}
