//! Listeners shared by every server: sockets, TLS, authentication, limits.
