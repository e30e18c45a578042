//! The forwarder as a whole, against a backend in the test.

mod failures;
mod grpc;
mod http;
mod lanes;
mod rig;
mod secure;
