//! The real program on the command line: exit statuses, messages, JSON. No host is contacted here.
#![allow(clippy::unwrap_used, missing_docs)]

mod at_boot;
mod closing;
mod damage;
mod golden;
mod program;
mod pruning;
mod reading;
mod transactions;
mod usage;
mod verifying;
