//! `verify` of what is no committed clone: refused from the journal alone.

use crate::program::Program;
use crate::transactions::Transaction;

#[test]
fn only_a_committed_clone_is_verified() {
    let program = Program::new();
    let state = program.state();
    Transaction::begin(&state, "11111111").interrupted();
    Transaction::begin(&state, "22222222").rolled_back();
    let running = Transaction::begin(&state, "33333333").did(0..2);
    program.run(&["verify", "11111111"]).exits(5).holds(&["interrupted", "no clone", "kvm-clone", "resume"]);
    program.run(&["verify", "22222222"]).exits(5).holds(&["rolled_back", "no clone"]);
    program.run(&["verify", "33333333"]).exits(7).holds(&["running", "wait for its end"]);
    drop(running);
    let (exit, value) = program.json(&["verify", "33333333"]);
    assert_eq!((exit, value["error"]["exit_status"].as_u64()), (5, Some(5)), "{value}");
}
