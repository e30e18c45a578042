//! The durable journal between the receiver and the readers.
