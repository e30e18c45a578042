//! What is asked of the running program over HTTP: health and readiness, the scrape, questions about executions.
//!
//! The functions here make answers; listeners, connections and authentication are the business of [`crate::listen`].

pub mod health;
pub mod page;
pub mod query;
pub mod scrape;
