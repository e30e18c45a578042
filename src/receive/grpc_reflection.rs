//! Server reflection, so that `grpcurl` and its kin can list, describe and call without the `.proto` files.
//!
//! The descriptors are those of the OpenTelemetry project, written by `scripts/descriptors.py`. `v1` and `v1alpha` of
//! the protocol have the same messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::grpc_stream::{Messages, StreamPlace, Turn};
use super::otlp_grpc::prefixed;
use crate::otlp::status::Code;

pub(super) const METHODS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// How long the next question may take.
const IDLE: Duration = Duration::from_secs(60);

static FILES: LazyLock<Files> = LazyLock::new(|| Files::read(include_bytes!("grpc_reflection.bin")));

/// Of `google.protobuf.FileDescriptorSet` and what is in it, as much as is needed to find things.
mod descriptor {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Set {
        #[prost(bytes = "bytes", repeated, tag = "1")]
        pub(super) file: Vec<bytes::Bytes>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct File {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) package: String,
        #[prost(string, repeated, tag = "3")]
        pub(super) dependency: Vec<String>,
        #[prost(message, repeated, tag = "4")]
        pub(super) message_type: Vec<Type>,
        #[prost(message, repeated, tag = "5")]
        pub(super) enum_type: Vec<Named>,
        #[prost(message, repeated, tag = "6")]
        pub(super) service: Vec<Service>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Type {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "3")]
        pub(super) nested_type: Vec<Type>,
        #[prost(message, repeated, tag = "4")]
        pub(super) enum_type: Vec<Named>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Service {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, repeated, tag = "2")]
        pub(super) method: Vec<Named>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Named {
        #[prost(string, tag = "1")]
        pub(super) name: String,
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(oneof = "Question", tags = "3, 4, 5, 6, 7")]
    question: Option<Question>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Question {
    #[prost(string, tag = "3")]
    FileByFilename(String),
    #[prost(string, tag = "4")]
    FileContainingSymbol(String),
    #[prost(bytes = "bytes", tag = "5")]
    FileContainingExtension(Bytes),
    #[prost(string, tag = "6")]
    AllExtensionNumbersOfType(String),
    #[prost(string, tag = "7")]
    ListServices(String),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(string, tag = "1")]
    valid_host: String,
    /// The request as it came.
    #[prost(bytes = "bytes", tag = "2")]
    original_request: Bytes,
    #[prost(oneof = "Answer", tags = "4, 5, 6, 7")]
    answer: Option<Answer>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Answer {
    #[prost(message, tag = "4")]
    Files(FileDescriptors),
    #[prost(message, tag = "5")]
    ExtensionNumbers(ExtensionNumbers),
    #[prost(message, tag = "6")]
    Services(Services),
    #[prost(message, tag = "7")]
    Error(ErrorResponse),
}

#[derive(Clone, PartialEq, prost::Message)]
struct FileDescriptors {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    file_descriptor_proto: Vec<Bytes>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExtensionNumbers {
    #[prost(string, tag = "1")]
    base_type_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Services {
    #[prost(message, repeated, tag = "1")]
    service: Vec<descriptor::Named>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorResponse {
    #[prost(int32, tag = "1")]
    error_code: i32,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// The files, and what is found in which.
#[derive(Default)]
struct Files {
    by_name: BTreeMap<String, (Bytes, Vec<String>)>,
    /// Full names of messages, enums, services and methods.
    by_symbol: BTreeMap<String, String>,
    services: Vec<descriptor::Named>,
}

impl Files {
    fn read(set: &'static [u8]) -> Files {
        let mut files = Files::default();
        // A test reads them all: they are part of the program.
        let set = descriptor::Set::decode(set).unwrap_or_default();
        for bytes in set.file {
            let file = descriptor::File::decode(bytes.clone()).unwrap_or_default();
            let mut add = |symbol: String| drop(files.by_symbol.insert(symbol, file.name.clone()));
            for message in &file.message_type {
                add_types(&file.package, message, &mut add);
            }
            for named in &file.enum_type {
                add(format!("{}.{}", file.package, named.name));
            }
            for service in &file.service {
                let full = format!("{}.{}", file.package, service.name);
                for method in &service.method {
                    add(format!("{full}.{}", method.name));
                }
                add(full.clone());
                files.services.push(descriptor::Named { name: full });
            }
            files.by_name.insert(file.name, (bytes, file.dependency));
        }
        files
    }

    /// A file and everything that it needs.
    fn with_dependencies(&self, name: &str) -> Option<Vec<Bytes>> {
        let mut wanted = vec![name];
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        while let Some(name) = wanted.pop() {
            if seen.insert(name) {
                let (bytes, dependencies) = self.by_name.get(name)?;
                found.push(bytes.clone());
                wanted.extend(dependencies.iter().map(String::as_str));
            }
        }
        Some(found)
    }

    fn answer(&self, question: Question) -> Answer {
        let not_found = |what: &str| {
            Answer::Error(ErrorResponse {
                error_code: Code::NotFound as i32,
                error_message: format!("there is no {what} here"),
            })
        };
        let found = |name: &str| {
            let files = self.with_dependencies(name);
            files.map(|file_descriptor_proto| Answer::Files(FileDescriptors { file_descriptor_proto }))
        };
        match question {
            Question::ListServices(_) => Answer::Services(Services {
                service: self.services.clone(),
            }),
            Question::FileByFilename(name) => found(&name).unwrap_or_else(|| not_found(&name)),
            Question::FileContainingSymbol(symbol) => {
                let file = self.by_symbol.get(symbol.trim_start_matches('.'));
                file.and_then(|name| found(name)).unwrap_or_else(|| not_found(&symbol))
            }
            Question::AllExtensionNumbersOfType(base_type_name) if self.by_symbol.contains_key(&base_type_name) => {
                Answer::ExtensionNumbers(ExtensionNumbers { base_type_name })
            }
            Question::AllExtensionNumbersOfType(name) => not_found(&name),
            Question::FileContainingExtension(_) => not_found("extension"),
        }
    }
}

fn add_types(package: &str, message: &descriptor::Type, add: &mut impl FnMut(String)) {
    let full = format!("{package}.{}", message.name);
    for nested in &message.nested_type {
        add_types(&full, nested, add);
    }
    for named in &message.enum_type {
        add(format!("{full}.{}", named.name));
    }
    add(full);
}

/// One client that asks.
pub(super) struct Asking {
    messages: Messages,
    place: StreamPlace,
}

impl Asking {
    pub(super) fn new(messages: Messages, place: StreamPlace) -> Asking {
        Asking { messages, place }
    }

    /// Waits for the next question and answers it.
    pub(super) async fn turn(mut self) -> (Asking, Turn) {
        let next = tokio::select! {
            next = tokio::time::timeout(IDLE, self.messages.next()) => next.unwrap_or(Ok(None)),
            () = self.place.shutdown.cancelled() => Ok(None),
        };
        let turn = next.map(|message| message.map(|message| prefixed(&answer(message).encode_to_vec())));
        (self, turn)
    }
}

fn answer(message: Bytes) -> Response {
    let request = Request::decode(message.clone()).ok();
    let answer = match request.as_ref().and_then(|request| request.question.clone()) {
        Some(question) => FILES.answer(question),
        None => Answer::Error(ErrorResponse {
            error_code: Code::InvalidArgument as i32,
            error_message: "this is no question of the reflection protocol".to_owned(),
        }),
    };
    Response {
        valid_host: request.map(|request| request.host).unwrap_or_default(),
        original_request: message,
        answer: Some(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::Signal;

    #[test]
    fn every_service_that_is_served_is_described_with_all_that_it_needs() {
        let services: Vec<&str> = FILES.services.iter().map(|it| it.name.as_str()).collect();
        for signal in Signal::ALL {
            assert!(services.contains(&signal.grpc_service()), "{signal} in {services:?}");
            let method = signal.grpc_path().trim_start_matches('/').replace('/', ".");
            let Answer::Files(files) = FILES.answer(Question::FileContainingSymbol(method.clone())) else {
                panic!("{method} is not described");
            };
            assert!(
                files.file_descriptor_proto.len() >= 4,
                "with its resource and common files"
            );
        }
        assert!(services.contains(&"grpc.health.v1.Health"), "{services:?}");
        for name in FILES.by_name.keys() {
            assert!(FILES.with_dependencies(name).is_some(), "{name} lacks a dependency");
        }
    }

    #[test]
    fn what_is_not_there_is_said_to_be_not_there_and_nonsense_is_answered() {
        let Answer::Error(error) = FILES.answer(Question::FileContainingSymbol("a.b".to_owned())) else {
            panic!("it was found");
        };
        assert_eq!(error.error_code, 5);
        let nonsense = answer(Bytes::from_static(b"\xff"));
        assert!(matches!(nonsense.answer, Some(Answer::Error(it)) if it.error_code == 3));
    }
}
