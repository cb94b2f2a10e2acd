//! A whole agent in a network namespace, asked over its unix socket and over TCP.

mod admin;
mod agent;
mod pages;
mod tasks;
