//! `--chain`: what becomes of the images that a disk stands on.

use std::str::FromStr;

use super::RequestError;

/// How a disk arrives whose image stands on others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chain {
    /// Each image is copied, and stands on copies.
    Keep,
    /// The same, but for an image at the bottom that the destination has, byte for byte: it stands on that as it is.
    Share,
    /// As one raw image, which has what a guest sees of all of them.
    Flatten,
}

impl FromStr for Chain {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "keep" => Ok(Self::Keep),
            "share" => Ok(Self::Share),
            "flatten" => Ok(Self::Flatten),
            _ => Err(RequestError::Chain { text: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_kept_shared_or_flattened_and_nothing_else() {
        assert_eq!("keep".parse(), Ok(Chain::Keep));
        assert_eq!("share".parse(), Ok(Chain::Share));
        assert_eq!("flatten".parse(), Ok(Chain::Flatten));
        for text in ["", "Flatten", "flat", "both"] {
            assert_eq!(text.parse::<Chain>(), Err(RequestError::Chain { text: text.to_owned() }));
        }
    }
}
