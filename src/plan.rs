//! survey + request → plan. Pure.
