//! The forwarder as a whole, against a backend in the test.

mod failures;
mod grpc;
mod http;
mod intake;
mod lanes;
mod loading;
mod resending;
mod rig;
mod secure;
mod tonic;
