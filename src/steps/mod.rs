//! One file a kind of step: probe, apply, undo, written once above World.
