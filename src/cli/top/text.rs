//! Styled text: lines of spans, what a terminal is sent for them, and others' words made safe to show.

use std::fmt::Write as _;

/// What a span means; [`ansi`] knows how that looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Style {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Stands out.
    Bold,
    /// Stands back.
    Dim,
    /// As it should be.
    Good,
    /// To be looked at.
    Warn,
    /// Wrong.
    Bad,
    /// A bar across the screen.
    Bar,
}

/// What may be used to show a style.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marks {
    /// Nothing but text.
    None,
    /// Bold, dim and reverse, but no colour (`NO_COLOR`).
    Weight,
    /// Everything.
    Colour,
}

/// Some text of one style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) style: Style,
    pub(super) text: String,
}

/// One line of the screen. Every character is one column wide: foreign text is escaped ([`shown`]) before it comes here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Line {
    pub(super) spans: Vec<Span>,
}

impl Line {
    /// A line of one span.
    pub(super) fn of(style: Style, text: impl Into<String>) -> Self {
        let mut line = Self::default();
        line.add(style, text);
        line
    }

    /// Adds text, to the last span where it has the same style.
    pub(super) fn add(&mut self, style: Style, text: impl Into<String>) {
        let text = text.into();
        match self.spans.last_mut() {
            Some(last) if last.style == style => last.text.push_str(&text),
            _ if text.is_empty() => {}
            _ => self.spans.push(Span { style, text }),
        }
    }

    /// Adds what another line has.
    pub(super) fn join(&mut self, other: Self) {
        for span in other.spans {
            self.add(span.style, span.text);
        }
    }

    /// Columns.
    pub(super) fn width(&self) -> usize {
        let widths = self.spans.iter().map(|span| span.text.chars().count());
        widths.sum()
    }

    /// Blanks up to `width`, in `style`.
    pub(super) fn pad(&mut self, style: Style, width: usize) {
        self.add(style, " ".repeat(width.saturating_sub(self.width())));
    }

    /// The line with at most `width` columns; one that is longer ends with the sign for more.
    pub(super) fn cut(mut self, width: usize, glyphs: &Glyphs) -> Self {
        if self.width() <= width {
            return self;
        }
        let mut left = width.saturating_sub(1);
        for span in &mut self.spans {
            let kept: String = span.text.chars().take(left).collect();
            left -= kept.chars().count();
            span.text = kept;
        }
        self.spans.retain(|span| !span.text.is_empty());
        if width > 0 {
            self.add(Style::Dim, glyphs.more.to_string());
        }
        self
    }

    /// The text alone, without blanks at its end.
    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        let text: String = self.spans.iter().map(|span| span.text.as_str()).collect();
        text.trim_end().to_owned()
    }
}

/// The signs to draw with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Glyphs {
    /// The filled part of a bar, and the rest of it.
    full: char,
    empty: char,
    /// Of a history, from nothing to the most.
    steps: [char; 8],
    /// Stands where something was cut off.
    more: char,
    /// Microseconds.
    pub(super) micro: &'static str,
}

impl Glyphs {
    /// For terminals that read UTF-8.
    pub(super) const UNICODE: Self = Self {
        full: '█',
        empty: '░',
        steps: ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
        more: '…',
        micro: "µs",
    };
    /// For all others.
    pub(super) const ASCII: Self = Self {
        full: '#',
        empty: '.',
        steps: [' ', '.', ':', '-', '=', '+', '*', '#'],
        more: '~',
        micro: "us",
    };

    /// How much `used` is of `most`, `width` columns wide. Something is never drawn as nothing.
    pub(super) fn bar(&self, used: u64, most: u64, width: usize) -> String {
        let columns = width as u64;
        let filled = match most {
            0 => 0,
            _ => (u128::from(used.min(most)) * u128::from(columns)).div_ceil(u128::from(most)),
        };
        let filled = usize::try_from(filled).unwrap_or(width);
        let bar = std::iter::repeat_n(self.full, filled);
        bar.chain(std::iter::repeat_n(self.empty, width - filled))
            .collect()
    }

    /// The last `width` of `values`, between nothing and the greatest of them, the newest at the right. Something is never
    /// drawn as nothing.
    pub(super) fn history(
        &self,
        values: impl DoubleEndedIterator<Item = u64>,
        width: usize,
    ) -> String {
        let mut last: Vec<u64> = values.rev().take(width).collect();
        last.reverse();
        let most = last.iter().copied().max().unwrap_or(0).max(1);
        let step = |value: &u64| {
            let index = (u128::from(*value) * 7).div_ceil(u128::from(most));
            self.steps[usize::try_from(index).unwrap_or(0).min(7)]
        };
        let blanks = std::iter::repeat_n(' ', width - last.len());
        blanks.chain(last.iter().map(step)).collect()
    }
}

/// Foreign text made safe to show: all but printable ASCII is escaped, so that nothing moves the cursor, changes colours,
/// turns the direction of writing or is wider than its count. At most `chars_max` characters.
pub(super) fn shown(text: &str, chars_max: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    for char in text.chars() {
        let is_plain = char.is_ascii_graphic() || char == ' ';
        let escaped: String = match is_plain {
            true => char.into(),
            false => char.escape_default().collect(),
        };
        count += escaped.len();
        if count > chars_max {
            out.push('~');
            break;
        }
        out.push_str(&escaped);
    }
    out
}

/// What a terminal is sent for a line (ECMA-48 SGR), without its end.
pub(super) fn ansi(line: &Line, marks: Marks) -> String {
    let mut out = String::new();
    for span in &line.spans {
        let code = match (marks, span.style) {
            (Marks::None, _) | (_, Style::Plain) => "",
            (_, Style::Bold) => "1",
            (_, Style::Dim) => "2",
            (_, Style::Bar) => "7",
            (Marks::Weight, Style::Good) => "",
            (Marks::Weight, Style::Warn | Style::Bad) => "1",
            (Marks::Colour, Style::Good) => "32",
            (Marks::Colour, Style::Warn) => "33",
            (Marks::Colour, Style::Bad) => "31",
        };
        let _ = match code {
            "" => write!(out, "{}", span.text),
            code => write!(out, "\x1b[{code}m{}\x1b[0m", span.text),
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_foreign_moves_the_cursor_or_is_wider_than_its_count() {
        assert_eq!(shown("node-1 ok", 80), "node-1 ok");
        assert_eq!(shown("\x1b[2Jx\r\n\u{9b}", 80), r"\u{1b}[2Jx\r\n\u{9b}");
        assert_eq!(shown("\u{202e}名", 80), r"\u{202e}\u{540d}");
        assert_eq!(shown("abcdef", 6), "abcdef");
        assert_eq!(shown("abcdefg", 6), "abcdef~");
        assert_eq!(shown("abc\u{1b}", 6), "abc~", "an escape is kept whole");
    }

    #[test]
    fn a_line_is_cut_at_the_width_and_not_before() {
        let mut line = Line::of(Style::Bold, "abc");
        line.add(Style::Good, "def");
        assert_eq!(line.clone().cut(6, &Glyphs::UNICODE), line);
        assert_eq!(line.clone().cut(5, &Glyphs::UNICODE).text(), "abcd…");
        assert_eq!(line.clone().cut(3, &Glyphs::ASCII).text(), "ab~");
        assert_eq!(line.clone().cut(1, &Glyphs::ASCII).text(), "~");
        assert_eq!(line.cut(0, &Glyphs::ASCII).width(), 0);
    }

    #[test]
    fn a_bar_is_full_at_the_most_and_shows_the_first_one() {
        let bar = |used, most| Glyphs::ASCII.bar(used, most, 4);
        assert_eq!(bar(0, 100), "....");
        assert_eq!(bar(1, 100), "#...");
        assert_eq!(bar(50, 100), "##..");
        assert_eq!(bar(51, 100), "###.");
        assert_eq!(bar(100, 100), "####");
        assert_eq!(bar(u64::MAX, 100), "####");
        assert_eq!(bar(7, 0), "....");
    }

    #[test]
    fn a_history_ends_with_the_newest_and_is_as_wide_as_asked() {
        let history = |values: &[u64]| Glyphs::ASCII.history(values.iter().copied(), 4);
        assert_eq!(history(&[]), "    ");
        assert_eq!(history(&[0, 7]), "   #");
        assert_eq!(history(&[9, 9, 9, 9, 0, 1, 7]), "# .*");
        assert_eq!(history(&[u64::MAX, 0]), "  # ");
    }

    #[test]
    fn colours_are_left_out_where_they_are_not_wanted() {
        let mut line = Line::of(Style::Bad, "no");
        line.add(Style::Good, "yes");
        line.add(Style::Bar, "bar");
        assert_eq!(ansi(&line, Marks::None), "noyesbar");
        assert_eq!(
            ansi(&line, Marks::Weight),
            "\x1b[1mno\x1b[0myes\x1b[7mbar\x1b[0m"
        );
        assert_eq!(
            ansi(&line, Marks::Colour),
            "\x1b[31mno\x1b[0m\x1b[32myes\x1b[0m\x1b[7mbar\x1b[0m"
        );
    }
}
