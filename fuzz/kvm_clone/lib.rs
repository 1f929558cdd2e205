//! Those modules of kvm-clone that read what others wrote, built from its own sources: the whole program would bring ssh
//! and libvirt into an instrumented build.

#![allow(dead_code, unused_imports, missing_docs)]

#[path = "../../src/domain/mod.rs"]
pub mod domain;
#[path = "../../src/glob.rs"]
pub mod glob;
#[path = "../../src/history.rs"]
pub mod history;
pub mod host;
#[path = "../../src/journal/mod.rs"]
pub mod journal;
#[path = "../../src/observer.rs"]
pub mod observer;
pub mod report;
#[path = "../../src/request/mod.rs"]
pub mod request;
