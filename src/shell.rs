//! Commands that are shown to people and can be pasted into a shell. Nothing here runs one.

/// A text as one word of a shell's command line.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggested_commands_can_be_pasted() {
        assert_eq!(shell_word("/srv/state-1"), "/srv/state-1");
        assert_eq!(shell_word("/a b"), "'/a b'");
        assert_eq!(shell_word("/it's"), "'/it'\\''s'");
        assert_eq!(shell_word("x'$(reboot)"), "'x'\\''$(reboot)'");
        assert_eq!(shell_word(""), "''");
    }
}
