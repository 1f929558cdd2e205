//! Patterns of one word: `*` stands for any number of characters, `?` for one, everything else for itself.

/// Does a pattern match the whole of a text?
pub fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // Greedy with one step back to the last `*`: linear memory, and no pattern makes it exponential.
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    star = Some((star_p, star_t + 1));
                    p = star_p + 1;
                    t = star_t + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_is_matched_and_case_matters() {
        for (pattern, text, expected) in [
            ("web*", "web01", true),
            ("web*", "Web01", false),
            ("*01", "web01", true),
            ("w?b*1", "web01", true),
            ("web", "web01", false),
            ("web0?", "web01", true),
            ("web0?", "web0", false),
            ("", "", true),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern:?} on {text:?}");
        }
    }
}
