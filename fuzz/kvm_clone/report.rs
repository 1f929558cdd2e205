//! How quantities are written.

#[path = "../../src/report/quantity.rs"]
pub mod quantity;
