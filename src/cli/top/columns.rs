//! The columns of the table: what each shows, how wide it is, and which go first where there is no room for all.

use super::cluster::{Health, Node};
use super::numbers::{UNKNOWN, age, count, micros, percent, span};
use super::text::{Glyphs, Line, Style};
use crate::cli::check::sized;

/// Columns of a node's name at least and at most.
const NAME_WIDTH: std::ops::RangeInclusive<usize> = 4..=24;
/// Blanks between two columns.
const GAP: usize = 1;

/// A column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Name,
    State,
    Connections,
    Share,
    Users,
    Rooms,
    In,
    Out,
    Buffered,
    Memory,
    LagP50,
    LagP99,
    Cpu,
    Uptime,
    Version,
    Mode,
    Age,
}

/// From left to right, with the columns that each takes and its rank: where there is no room for all, those with the
/// greatest rank are left out. The name's width is worked out from the names.
const COLUMNS: [(Column, &str, usize, u8); 17] = [
    (Column::Name, "NODE", 0, 0),
    (Column::State, "STATE", 9, 1),
    (Column::Connections, "CONNS", 11, 2),
    (Column::Share, "OF MAX", 10, 9),
    (Column::Users, "USERS", 10, 8),
    (Column::Rooms, "ROOMS", 9, 11),
    (Column::In, "IN/S", 9, 4),
    (Column::Out, "OUT/S", 10, 3),
    (Column::Buffered, "BUFFERED", 9, 7),
    (Column::Memory, "MEMORY", 9, 6),
    (Column::LagP50, "LAG P50", 8, 13),
    (Column::LagP99, "LAG P99", 8, 5),
    (Column::Cpu, "CPU", 7, 10),
    (Column::Uptime, "UPTIME", 7, 14),
    (Column::Version, "VERSION", 9, 15),
    (Column::Mode, "MODE", 7, 16),
    (Column::Age, "AGE", 6, 12),
];

/// The columns that fit, each with its width.
#[derive(Debug)]
pub(super) struct Columns {
    chosen: Vec<(Column, &'static str, usize)>,
}

impl Columns {
    /// As many as `width` has room for; the name always.
    pub(super) fn choose(nodes: &[&Node], width: usize) -> Self {
        let longest = nodes.iter().map(|node| node.id.len()).max();
        let name_width = longest
            .unwrap_or(0)
            .clamp(*NAME_WIDTH.start(), *NAME_WIDTH.end());
        let width_of = |&(column, _, columns, _): &(Column, _, usize, u8)| match column {
            Column::Name => name_width,
            _ => columns,
        };
        let mut by_rank: Vec<_> = COLUMNS.iter().collect();
        by_rank.sort_by_key(|(.., rank)| *rank);
        let mut left = width + GAP;
        let mut rank_max = 0;
        for entry in by_rank {
            let needed = width_of(entry) + GAP;
            if needed > left && entry.3 > 0 {
                break;
            }
            left = left.saturating_sub(needed);
            rank_max = entry.3;
        }
        let fits = |entry: &&(Column, &'static str, usize, u8)| entry.3 <= rank_max;
        let chosen = COLUMNS
            .iter()
            .filter(fits)
            .map(|entry| (entry.0, entry.1, width_of(entry)));
        Self {
            chosen: chosen.collect(),
        }
    }

    /// The titles.
    pub(super) fn head(&self, style: Style) -> Line {
        let mut line = Line::default();
        for (column, title, width) in &self.chosen {
            put(&mut line, style, *column, title, *width, &Glyphs::ASCII);
        }
        line
    }

    /// One node. `late_ms`: how long ago its figures were told.
    pub(super) fn row(&self, node: &Node, late_ms: u64, glyphs: &Glyphs) -> Line {
        let mut line = Line::default();
        for &(column, _, width) in &self.chosen {
            let (style, text) = cell(column, node, late_ms, width, glyphs);
            // A node that is gone stands back as a whole; what it last said is no verdict.
            let style = match node.health {
                Health::Silent => Style::Dim,
                _ => style,
            };
            put(&mut line, style, column, &text, width, glyphs);
        }
        line
    }
}

/// Adds a cell: words at the left of their column, figures at the right.
fn put(line: &mut Line, style: Style, column: Column, text: &str, width: usize, glyphs: &Glyphs) {
    if !line.spans.is_empty() {
        let between = match style {
            Style::Bar => Style::Bar,
            _ => Style::Plain,
        };
        line.add(between, " ".repeat(GAP));
    }
    let cut = Line::of(style, text).cut(width, glyphs);
    let blanks = " ".repeat(width - cut.width());
    let is_word = matches!(
        column,
        Column::Name | Column::State | Column::Share | Column::Version | Column::Mode
    );
    if !is_word {
        line.add(style, blanks.clone());
    }
    line.join(cut);
    if is_word {
        line.add(style, blanks);
    }
}

/// What stands in a cell.
fn cell(
    column: Column,
    node: &Node,
    late_ms: u64,
    width: usize,
    glyphs: &Glyphs,
) -> (Style, String) {
    let plain = |text: Option<String>| (Style::Plain, text.unwrap_or_else(|| UNKNOWN.into()));
    let counted = |number: Option<u64>| plain(number.map(|number| count(number, width)));
    let known = |text: &Option<String>| plain(text.clone());
    match column {
        Column::Name => (Style::Bold, node.id.clone()),
        Column::State => (health_style(&node.health), node.health.label().into()),
        Column::Connections => counted(node.connections),
        Column::Share => match (node.connections, node.connections_max) {
            (Some(used), Some(most)) => (fullness(used, most), glyphs.bar(used, most, width)),
            _ => plain(None),
        },
        Column::Users => counted(node.users),
        Column::Rooms => counted(node.rooms),
        Column::In => counted(node.messages_in_per_s),
        Column::Out => counted(node.messages_out_per_s),
        Column::Buffered => plain(node.buffered_bytes.map(sized)),
        Column::Memory => plain(node.memory_bytes.map(sized)),
        Column::LagP50 => plain(node.lag_p50_us.map(|lag| micros(lag, glyphs))),
        Column::LagP99 => plain(node.lag_p99_us.map(|lag| micros(lag, glyphs))),
        Column::Cpu => plain(node.cpu_permille.map(percent)),
        Column::Uptime => plain(node.uptime_s.map(span)),
        Column::Version => known(&node.version),
        Column::Mode => known(&node.mode),
        Column::Age => plain(node.age_ms.map(|ms| age(ms.saturating_add(late_ms)))),
    }
}

/// How a state looks.
pub(super) fn health_style(health: &Health) -> Style {
    match health {
        Health::Ready => Style::Good,
        Health::NotReady => Style::Bad,
        Health::Draining => Style::Warn,
        Health::Silent => Style::Dim,
        Health::Other(_) => Style::Plain,
    }
}

/// How a share of a limit looks: from nine tenths on it is to be looked at, from 98 hundredths on it is wrong.
pub(super) fn fullness(used: u64, most: u64) -> Style {
    let hundredths = u128::from(used) * 100 / u128::from(most.max(1));
    match hundredths {
        0..90 => Style::Good,
        90..98 => Style::Warn,
        _ => Style::Bad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::tests::node;

    /// The titles at a width.
    fn head(width: usize) -> String {
        let node = node("node-1");
        let line = Columns::choose(&[&node], width).head(Style::Plain);
        assert!(line.width() <= width.max(6), "{width}: {line:?}");
        let words: Vec<_> = line.text().split_whitespace().map(String::from).collect();
        words.join(" ")
    }

    #[test]
    fn columns_are_left_out_by_their_rank() {
        assert_eq!(
            head(300),
            "NODE STATE CONNS OF MAX USERS ROOMS IN/S OUT/S BUFFERED MEMORY LAG P50 LAG P99 CPU UPTIME VERSION MODE AGE"
        );
        assert_eq!(
            head(80),
            "NODE STATE CONNS IN/S OUT/S BUFFERED MEMORY LAG P99"
        );
        assert_eq!(head(40), "NODE STATE CONNS OUT/S");
        assert_eq!(head(10), "NODE");
        assert_eq!(head(0), "NODE");
        for width in 0..300 {
            let (narrow, wide) = (head(width), head(width + 1));
            assert!(
                narrow.split(' ').all(|title| wide.contains(title)),
                "{narrow} at {width}, {wide} beyond"
            );
        }
    }

    #[test]
    fn a_share_is_told_by_its_colour() {
        assert_eq!(fullness(89, 100), Style::Good);
        assert_eq!(fullness(90, 100), Style::Warn);
        assert_eq!(fullness(97, 100), Style::Warn);
        assert_eq!(fullness(98, 100), Style::Bad);
        assert_eq!(fullness(0, 0), Style::Good);
        assert_eq!(fullness(u64::MAX, 1), Style::Bad);
    }

    #[test]
    fn every_cell_keeps_to_its_column() {
        let mut huge = node(&"n".repeat(60));
        huge.version = Some("v".repeat(60));
        for figure in [
            &mut huge.connections,
            &mut huge.users,
            &mut huge.rooms,
            &mut huge.messages_in_per_s,
            &mut huge.messages_out_per_s,
            &mut huge.buffered_bytes,
            &mut huge.memory_bytes,
            &mut huge.lag_p50_us,
            &mut huge.lag_p99_us,
            &mut huge.cpu_permille,
            &mut huge.uptime_s,
            &mut huge.age_ms,
        ] {
            *figure = Some(u64::MAX);
        }
        let columns = Columns::choose(&[&huge], 300);
        let (head, row) = (
            columns.head(Style::Plain),
            columns.row(&huge, 5, &Glyphs::ASCII),
        );
        assert_eq!(head.width(), row.width());
    }

    #[test]
    fn a_silent_node_stands_back_as_a_whole() {
        let mut gone = node("gone");
        gone.health = Health::Silent;
        let row = Columns::choose(&[&gone], 300).row(&gone, 0, &Glyphs::ASCII);
        let is_dim = |style| matches!(style, Style::Dim | Style::Plain);
        assert!(row.spans.iter().all(|span| is_dim(span.style)), "{row:?}");
        assert!(row.spans.iter().any(|span| span.text.contains("silent")));
    }
}
