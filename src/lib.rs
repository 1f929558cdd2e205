//! kvm-clone clones libvirt/KVM virtual machines between hosts as journaled, resumable transactions.
//! ARCHITECTURE.md is the map. Dependencies point inwards: `cli` → `host`, `journal` stores → `engine` → `steps` →
//! `transfer`, `domain` → `world` → `journal_format`.

pub mod cli;
pub mod domain;
pub mod engine;
pub mod failure;
mod glob;
pub mod history;
pub mod host;
pub mod journal;
pub mod observer;
pub mod plan;
pub mod preflight;
pub mod reach;
pub mod records;
pub mod report;
pub mod request;
mod shell;
pub mod steps;
pub mod survey;
pub mod transfer;
pub mod verify;
pub mod world;
