//! A write that fails: the journal says so, writes nothing more, and opens again with all that was acknowledged.

use journal_format::EventV1;
use kvm_clone::journal::{Journal, JournalError, Repair};

use super::{Home, chunk, example};
