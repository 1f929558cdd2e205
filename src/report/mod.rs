//! How a transaction is shown: status, the transaction log, tables, live progress. Everything here makes text or plain
//! data from records; nothing here prints, locks or changes anything (`cli` prints).

pub mod list;
pub mod live;
pub mod plan;
pub mod quantity;
pub mod rate;
mod reading;
pub mod replaced;
pub mod show;
pub mod status;
pub mod step;
pub mod table;
pub mod transaction;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
