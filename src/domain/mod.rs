//! Domain XML: read, rewrite by spans, and what of it can be carried.
