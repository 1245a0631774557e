//! What others say, made safe to print: a server's words go to a terminal and into lines that scripts read.

/// At most `chars_max` characters of `text`, on one line, without control characters.
pub fn in_a_line(text: &str, chars_max: usize) -> String {
    let words: Vec<&str> = text
        .split(|char: char| char.is_whitespace() || char.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    let line = words.join(" ");
    if line.chars().count() <= chars_max {
        return line;
    }
    let begin: String = line.chars().take(chars_max).collect();
    format!("{begin}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_a_cursor_or_begins_a_line_is_left() {
        let line = in_a_line("\u{1b}[31mFAULT: x\r\n\u{1b}]0;title\u{7}\n\n  end", 80);
        assert_eq!(line, "[31mFAULT: x ]0;title end");
        assert_eq!(
            in_a_line(&"x".repeat(100), 10),
            format!("{}…", "x".repeat(10))
        );
    }
}
