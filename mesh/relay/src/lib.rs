//! The userspace plane: TCP by splice, UDP sessions, PROXY protocol
