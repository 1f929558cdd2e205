//! The read-only facts gathered from both hosts before planning.
