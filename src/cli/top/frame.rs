//! The screen and the single table: what is known, as lines. Pure.
//!
//! ```text
//! head      totals, the source, histories; who does not answer
//! table     titles, and a row for each node: as many as there is room for, the others are scrolled to
//! reasons   of nodes that are not as they should be: at most a third of what is left
//! foot      the keys
//! ```

use super::cluster::{Health, Node};
use super::columns::{Columns, fullness, health_style};
use super::numbers::{UNKNOWN, count, span, time_of_day};
use super::state::{Sample, Sort, State};
use super::text::{Glyphs, Line, Style};
use crate::cli::check::sized;

/// Below this height there are no histories.
const HISTORY_HEIGHT_MIN: usize = 12;
/// Widths of a history and of the bar of all connections at most.
const HISTORY_WIDTH_MAX: usize = 120;
const BAR_WIDTH: usize = 20;
/// What is kept beside a history for its greatest value.
const MOST_WIDTH: usize = 17;

/// The whole screen: `height` lines of at most `width` columns.
pub(super) fn frame(state: &State, width: usize, height: usize, glyphs: &Glyphs) -> Vec<Line> {
    let rows = state.rows();
    let mut lines = head(state, width, height, glyphs);
    let plan = Plan::of(state, &lines, height);
    lines.push(title(&rows, width));
    let shown = rows.iter().skip(state.first_row).take(plan.row_count);
    let late_ms = state.now.since(state.answered) / 1_000;
    let columns = Columns::choose(&rows, width);
    lines.extend(shown.map(|node| columns.row(node, late_ms, glyphs)));
    lines.extend(reasons(&rows, plan.reason_count));
    lines.truncate(height.saturating_sub(1));
    lines.resize(height.saturating_sub(1), Line::default());
    if height > 0 {
        lines.push(foot(state, rows.len(), plan.row_count));
    }
    lines
        .into_iter()
        .map(|line| line.cut(width, glyphs))
        .collect()
}

/// How many rows a screen of this size has room for.
pub(super) fn row_count(state: &State, width: usize, height: usize, glyphs: &Glyphs) -> usize {
    Plan::of(state, &head(state, width, height, glyphs), height).row_count
}

/// Totals, table and reasons, once and whole. `width`: `None` for as wide as it gets.
pub(super) fn table(state: &State, width: Option<usize>, glyphs: &Glyphs) -> Vec<Line> {
    let width = width.unwrap_or(usize::MAX / 2);
    let rows = state.rows();
    let columns = Columns::choose(&rows, width);
    let mut lines = vec![summary(state), traffic(state)];
    lines.extend(problem(state));
    lines.push(columns.head(Style::Bold));
    lines.extend(rows.iter().map(|node| columns.row(node, 0, glyphs)));
    lines.extend(reasons(&rows, usize::MAX));
    lines
        .into_iter()
        .map(|line| line.cut(width, glyphs))
        .collect()
}

/// What is given how many lines.
struct Plan {
    row_count: usize,
    reason_count: usize,
}

impl Plan {
    fn of(state: &State, head: &[Line], height: usize) -> Self {
        let node_count = state.answer.cluster.nodes.len();
        // The titles and the foot have a line each.
        let left = height.saturating_sub(head.len() + 2);
        let wanted = reason_lines(&state.rows()).count();
        let beside_rows = left.saturating_sub(node_count).max(left / 3);
        let reason_count = wanted.min(beside_rows);
        Self {
            row_count: left - reason_count,
            reason_count,
        }
    }
}

fn head(state: &State, width: usize, height: usize, glyphs: &Glyphs) -> Vec<Line> {
    let mut lines = vec![summary(state)];
    let clock = clock(state);
    let first = &mut lines[0];
    // The clock stands at the right, where there is room for it; else below.
    if first.width() + 2 + clock.width() <= width {
        first.pad(Style::Plain, width - clock.width());
        first.join(clock);
    } else {
        lines.push(clock);
    }
    let totals = &state.answer.cluster.totals;
    let mut traffic = traffic(state);
    if let (Some(used), Some(most)) = (totals.connections, totals.connections_max)
        && traffic.width() + 2 + BAR_WIDTH <= width
    {
        traffic.add(Style::Plain, "  ");
        traffic.add(fullness(used, most), glyphs.bar(used, most, BAR_WIDTH));
    }
    lines.push(traffic);
    lines.extend(problem(state));
    lines.extend(silence(state));
    if height >= HISTORY_HEIGHT_MIN {
        let messages = |sample: &Sample| sample.messages_per_s;
        lines.push(history(state, "messages/s", messages, width, glyphs));
        let connections = |sample: &Sample| sample.connections;
        lines.push(history(state, "connections", connections, width, glyphs));
    }
    lines
}

/// `3 nodes, 2 ready   120,431 of 300,000 connections   100,000 users`
fn summary(state: &State) -> Line {
    let cluster = &state.answer.cluster;
    let totals = &cluster.totals;
    let mut line = Line::of(Style::Bold, "throng");
    let nodes = cluster.nodes.len();
    line.add(
        Style::Plain,
        format!("  {nodes} node{}, ", if nodes == 1 { "" } else { "s" }),
    );
    let ready = totals.ready;
    let style = match ready {
        Some(0) => Style::Bad,
        Some(ready) if ready == nodes as u64 => Style::Good,
        _ => Style::Warn,
    };
    line.add(style, format!("{} ready", figure(ready)));
    let connections = match totals.connections_max {
        Some(most) => format!(
            "  {} of {} connections",
            figure(totals.connections),
            figure(Some(most))
        ),
        None => format!("  {} connections", figure(totals.connections)),
    };
    line.add(Style::Plain, connections);
    line.add(Style::Plain, format!("  {} users", figure(totals.users)));
    line
}

/// `messages/s 12,345 in, 1,234,567 out   1.2 MiB buffered`
fn traffic(state: &State) -> Line {
    let totals = &state.answer.cluster.totals;
    let buffered = totals.buffered_bytes.map(sized);
    Line::of(
        Style::Plain,
        format!(
            "messages/s {} in, {} out  {} buffered",
            figure(totals.messages_in_per_s),
            figure(totals.messages_out_per_s),
            buffered.as_deref().unwrap_or(UNKNOWN)
        ),
    )
}

/// `14:03:07 UTC  every 2 s  from a (127.0.0.1:8081)`
fn clock(state: &State) -> Line {
    let mut line = Line::default();
    if state.is_paused {
        line.add(Style::Warn, "paused  ");
    }
    let (node, source) = (&state.answer.cluster.node, &state.answer.source);
    line.add(
        Style::Dim,
        format!(
            "{}  from {node} ({source})",
            time_of_day(state.answered_unix_s)
        ),
    );
    line
}

/// Why the one that answered may not know of all.
fn problem(state: &State) -> Vec<Line> {
    let cluster = &state.answer.cluster;
    let mut lines = Vec::new();
    if let Some(problem) = &cluster.problem {
        lines.push(Line::of(
            Style::Bad,
            format!("{} knows of itself alone: {problem}", cluster.node),
        ));
    } else if !cluster.has_redis {
        lines.push(Line::of(
            Style::Dim,
            format!("{} has no Redis: there are no other nodes", cluster.node),
        ));
    }
    lines
}

/// Who does not answer, since when and why.
fn silence(state: &State) -> Vec<Line> {
    let Some(failure) = &state.failure else {
        return Vec::new();
    };
    let seconds = state.now.since(failure.since) / 1_000_000;
    let mut lines = vec![Line::of(
        Style::Bad,
        format!("no answer for {}; below is the last one", span(seconds)),
    )];
    lines.extend(
        failure
            .reasons
            .iter()
            .map(|reason| Line::of(Style::Bad, format!("  {reason}"))),
    );
    lines
}

fn history(
    state: &State,
    name: &str,
    of: impl Fn(&Sample) -> u64,
    width: usize,
    glyphs: &Glyphs,
) -> Line {
    let newest = state.history.back().map_or(0, &of);
    let most = state.history.iter().map(&of).max().unwrap_or(0);
    let mut line = Line::of(Style::Dim, format!("{name:<11} "));
    line.add(Style::Plain, format!("{:>11} ", figure(Some(newest))));
    let room = width.saturating_sub(line.width() + MOST_WIDTH);
    let values = state.history.iter().map(&of);
    line.add(
        Style::Good,
        glyphs.history(values, room.min(HISTORY_WIDTH_MAX)),
    );
    line.add(Style::Dim, format!(" most {}", figure(Some(most))));
    line
}

fn title(rows: &[&Node], width: usize) -> Line {
    let mut line = Columns::choose(rows, width).head(Style::Bar);
    line.pad(Style::Bar, width);
    line
}

/// At most `count_max` lines of reasons; the last one tells how many there are beyond.
fn reasons(rows: &[&Node], count_max: usize) -> Vec<Line> {
    let count = reason_lines(rows).count();
    if count <= count_max {
        return reason_lines(rows).collect();
    }
    let Some(kept) = count_max.checked_sub(1) else {
        return Vec::new();
    };
    let mut lines: Vec<Line> = reason_lines(rows).take(kept).collect();
    lines.push(Line::of(
        Style::Dim,
        format!("{} more reasons", count - kept),
    ));
    lines
}

/// A line for each reason of each node.
fn reason_lines<'a>(rows: &'a [&'a Node]) -> impl Iterator<Item = Line> + 'a {
    rows.iter().flat_map(|node| {
        node.reasons.iter().map(|reason| {
            let style = match node.health {
                Health::Ready => Style::Warn,
                _ => health_style(&node.health),
            };
            Line::of(style, format!("{}: {reason}", node.id))
        })
    })
}

/// The keys, and which of the rows are shown.
fn foot(state: &State, node_count: usize, row_count: usize) -> Line {
    let mut line = Line::default();
    if (1..node_count).contains(&row_count) {
        let first = state.first_row.min(node_count - row_count);
        line.add(
            Style::Bold,
            format!("{}-{} of {node_count}  ", first + 1, first + row_count),
        );
    }
    let sorts = [
        ("n", "name", Sort::Name),
        ("c", "connections", Sort::Connections),
        ("m", "memory", Sort::Memory),
        ("l", "lag", Sort::Lag),
    ];
    line.add(Style::Dim, "q quit  p pause  sort:");
    for (key, name, sort) in sorts {
        let style = match sort == state.sort {
            true => Style::Bold,
            false => Style::Dim,
        };
        line.add(style, format!(" {key} {name}"));
    }
    line.add(Style::Dim, format!("  every {}", every(state.interval_ms)));
    line
}

fn every(ms: u64) -> String {
    crate::config::human_number(ms, crate::config::Unit::Milliseconds)
}

/// A figure of the head, where there is room for any.
fn figure(number: Option<u64>) -> String {
    number.map_or_else(|| UNKNOWN.into(), |number| count(number, 15))
}
