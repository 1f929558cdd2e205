//! survey + request → every blocker at once. Pure.
