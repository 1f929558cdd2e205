//! Plain tables: columns as wide as their widest cell on a terminal, two spaces between, no trailing space.

use unicode_width::UnicodeWidthStr;

use super::quantity::printable;

/// Lays rows out under their headings. Control characters in cells are made visible.
pub fn lay_out<const COLUMNS: usize>(headings: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let rows: Vec<[String; COLUMNS]> = std::iter::once(headings.map(str::to_owned))
        .chain(rows.iter().cloned().map(|row| row.map(|cell| printable(&cell))))
        .collect();
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].width()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.width() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = lay_out(["TXN", "VM"], &[["12345678".into(), "wéb".into()], ["日本".into(), "a\tb".into()]]);
        assert_eq!(table, "TXN       VM\n12345678  wéb\n日本      a\\u{9}b\n");
    }
}
