//! How the agent ends: at once, from any thread, whatever the others are blocked in. The kernel drops its locks.

use std::io::Write;
use std::panic;

use nix::libc;
use nix::unistd::alarm;

/// The controller closed the link.
pub const CLOSED: u8 = 0;
/// It was started wrongly, or cannot run here.
pub const UNUSABLE: u8 = 2;
/// The controller broke the protocol.
pub const PROTOCOL: u8 = 3;
/// The controller was silent for too long.
pub const SILENCE: u8 = 4;
/// A bug of the agent.
pub const BUG: u8 = 101;

/// Seconds that the last words may take before the alarm ends the process in their place.
const LAST_WORDS_SECONDS_MAX: u32 = 1;

/// Ends the process, saying why on stderr if anybody takes it.
pub fn end(code: u8, why: &str) -> ! {
    if !why.is_empty() {
        // Nobody may be reading stderr either: SIGALRM's default action ends the process then.
        alarm::set(LAST_WORDS_SECONDS_MAX);
        let _ = std::io::stderr().write_all(format!("kvm-clone-agent: {why}\n").as_bytes());
    }
    // SAFETY: `_exit` takes no pointers and does not return. Destructors are skipped on purpose: they could block.
    unsafe { libc::_exit(i32::from(code)) }
}

/// A panic in any thread ends the whole agent: half an agent would keep its locks and do nothing.
pub fn end_on_panic() {
    panic::set_hook(Box::new(|info| end(BUG, &format!("bug: {info}"))));
}
