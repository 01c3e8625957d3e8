//! The server as its clients meet it: over sockets, with everything that a request passes.

#![allow(clippy::unwrap_used)] // a test

mod access;
mod clients;
mod document;
mod jobs;
mod requests;
mod results;
mod served;
mod uploads;
mod verbs;
