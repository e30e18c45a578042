//! Against the gRPC server that others use.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use tokio::net::TcpListener;
use tonic::codegen::Service;

use super::rig::{Rig, names, request};
use crate::forward::{Protocol, list_refused};

/// Remembers what it takes; the first request is refused as "later", those with a span "bad" for good.
#[derive(Clone, Default)]
struct Backend(Arc<Mutex<Vec<Vec<String>>>>);

#[tonic::async_trait]
impl TraceService for Backend {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let key = request
            .metadata()
            .get("signoz-ingestion-key")
            .map(|key| key.to_str().unwrap().to_owned());
        assert_eq!(key.as_deref(), Some("secret"));
        let names = names(&request.into_inner().encode_to_vec());
        let mut taken = self.0.lock().unwrap();
        if names.iter().any(|name| name == "bad") {
            return Err(tonic::Status::invalid_argument("a bad span: 100 %"));
        }
        taken.push(names);
        match taken.len() {
            1 => Err(tonic::Status::unavailable("later")),
            _ => Ok(tonic::Response::new(ExportTraceServiceResponse::default())),
        }
    }
}

#[tokio::test]
async fn a_tonic_server_understands_what_is_sent_and_its_answers_are_understood() {
    let backend = Backend::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = Rig::new(&format!("http://{}", listener.local_addr().unwrap()));
    let service = TraceServiceServer::new(backend.clone());
    let server = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let mut service = service.clone();
                async move { Ok::<_, Infallible>(service.call(request).await.unwrap()) }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            connections.spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    });
    rig.options.protocol = Protocol::Grpc;
    rig.options.merge = false;
    rig.options.headers = crate::forward::Headers::parse("signoz-ingestion-key=secret").unwrap();
    for name in ["a", "bad", "b"] {
        rig.append(
            crate::otlp::Signal::Traces,
            crate::otlp::Encoding::Identity,
            request([name]),
        )
        .await;
    }
    let running = rig.start();
    while rig.saved() != Some(rig.end()) {
        tokio::task::yield_now().await;
    }
    running.stop().await;
    server.abort();
    let mut taken = backend.0.lock().unwrap().concat();
    taken.sort();
    taken.dedup();
    assert_eq!(taken, ["a", "b"]);
    let kept = list_refused(&rig.refused()).unwrap();
    assert_eq!(kept[0].refusal.reason, "INVALID_ARGUMENT: a bad span: 100 %");
}
