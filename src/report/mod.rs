//! How a transaction is shown: progress, tables, JSON, the transaction log. Prints nothing itself.
