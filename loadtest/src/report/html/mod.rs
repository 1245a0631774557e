//! The report as one page: opens from disk, fetches nothing, light and dark.
//!
//! The plots are SVG made here; the script only shows values under the pointer. Every text that is not ours is escaped, and a
//! content security policy keeps the page from loading anything.

mod charts;
mod plot;

use std::fmt::Write as _;

use super::figures::{Section, Unit, plain};
use super::json::Document;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Figures that are shown large, when there are such; at most [`TILE_COUNT_MAX`].
const TILES: [(&str, &str); 12] = [
    ("deliveries_per_s", "deliveries"),
    ("messages_per_s", "messages"),
    ("handshakes_per_s", "handshakes"),
    ("latency_p50_ms", "latency, p50"),
    ("latency_p99_ms", "latency, p99"),
    ("latency_p99_9_ms", "latency, p99.9"),
    ("handshake_p99_ms", "handshake, p99"),
    ("lost", "lost"),
    ("server_cpu_us_per_delivery", "server CPU a delivery"),
    ("server_cpu_us_per_message", "server CPU a message"),
    ("server_cpu_us_per_handshake", "server CPU a handshake"),
    (
        "server_rss_bytes_per_connection",
        "server memory a connection",
    ),
];
const TILE_COUNT_MAX: usize = 8;

/// The page of a run.
pub fn page(document: &Document) -> String {
    let mut out = String::with_capacity(256 * 1024);
    let title = escape(&document.scenario);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\"/>\n\
         <title>{title} - throng-load</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    write_head(document, &mut out);
    write_tiles(document, &mut out);
    write_list("Faults", "faults", &document.faults, &mut out);
    write_list("Notes", "notes", &document.notes, &mut out);
    out.push_str("<h2>Over time</h2>\n");
    charts::write(document, &mut out);
    write_figures(document, &mut out);
    let _ = write!(
        out,
        "</main>\n<div id=\"tip\" hidden=\"hidden\"></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    );
    out
}

fn write_head(document: &Document, out: &mut String) {
    let (class, verdict) = match document.faults.len() {
        0 => ("good", "✓ no fault".to_owned()),
        1 => ("bad", "✕ 1 fault".to_owned()),
        count => ("bad", format!("✕ {count} faults")),
    };
    let host = &document.host;
    let _ = write!(
        out,
        "<header>\n<h1>{} <span class=\"verdict {class}\">{verdict}</span></h1>\n<pre>{}</pre>\n<p>{} · {} · {} x {} · {} · throng-load {}</p>\n</header>\n",
        escape(&document.scenario),
        escape(&document.command),
        escape(&document.began_at),
        escape(&Unit::Time(1_000_000_000).human(document.seconds)),
        host.processors,
        escape(if host.processor.is_empty() {
            "processor"
        } else {
            &host.processor
        }),
        escape(&host.kernel),
        escape(&document.version),
    );
}

fn write_tiles(document: &Document, out: &mut String) {
    out.push_str("<div class=\"tiles\">\n");
    let found = TILES
        .iter()
        .filter_map(|(name, label)| Some((name, label, document.figures.get(name)?)));
    for (name, label, value) in found.take(TILE_COUNT_MAX) {
        let human = Unit::of(name).human(value);
        let text = if human.is_empty() {
            plain(value)
        } else {
            human
        };
        let _ = writeln!(
            out,
            "<div class=\"tile\"><span>{}</span><b>{}</b></div>",
            escape(label),
            escape(&text)
        );
    }
    out.push_str("</div>\n");
}

fn write_list(title: &str, class: &str, texts: &[String], out: &mut String) {
    if texts.is_empty() {
        return;
    }
    let _ = write!(out, "<section class=\"{class}\">\n<h2>{title}</h2>\n<ul>\n");
    for text in texts {
        let _ = writeln!(out, "<li>{}</li>", escape(text));
    }
    out.push_str("</ul>\n</section>\n");
}

fn write_figures(document: &Document, out: &mut String) {
    out.push_str("<h2>Figures</h2>\n<div class=\"tables\">\n");
    for section in Section::ALL {
        let mut figures = document
            .figures
            .iter()
            .filter(|(name, _)| Section::of(name) == section)
            .peekable();
        if figures.peek().is_none() {
            continue;
        }
        let _ = write!(
            out,
            "<table>\n<caption>{}</caption>\n<tbody>\n",
            section.title()
        );
        for (name, value) in figures {
            let _ = writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>",
                escape(name),
                plain(value),
                escape(&Unit::of(name).human(value))
            );
        }
        out.push_str("</tbody>\n</table>\n");
    }
    out.push_str("</div>\n");
}

/// Text that is safe in an element and in a quoted attribute.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // No other control character may stand in a document.
            '\n' | '\t' => safe.push(letter),
            letter if letter.is_control() => safe.push('\u{fffd}'),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Point;
    use crate::report::sample::sample;

    /// Checks that every element is closed in its turn, and returns the names that were met.
    fn check_elements(page: &str) -> Vec<String> {
        let mut open: Vec<&str> = Vec::new();
        let mut met = Vec::new();
        let mut rest = page
            .strip_prefix("<!DOCTYPE html>")
            .expect("a document type");
        while let Some(start) = rest.find('<') {
            let end = start + rest[start..].find('>').expect("a tag ends");
            let tag = &rest[start + 1..end];
            assert!(!tag.contains('<'), "a tag in a tag: {tag}");
            rest = &rest[end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "</{name}> closes another");
                continue;
            }
            let name = tag.split([' ', '/']).next().unwrap();
            assert!(
                name.chars().all(|letter| letter.is_ascii_alphanumeric()),
                "<{tag}>"
            );
            assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
            met.push(name.to_owned());
            if tag.ends_with('/') {
                continue;
            }
            open.push(name);
            if matches!(name, "script" | "style") {
                let end = rest.find(&format!("</{name}>")).expect("it ends");
                rest = &rest[end..];
            }
        }
        assert_eq!(open, [""; 0], "all are closed");
        met
    }

    #[test]
    fn the_page_is_well_formed_and_has_every_plot_and_figure() {
        let document = sample(90);
        let page = page(&document);
        let elements = check_elements(&page);
        let plots = elements.iter().filter(|name| *name == "svg").count();
        assert_eq!(
            plots, 10,
            "latency, 3 of traffic, 2 of connections, 2 servers, memory, distribution"
        );
        for (name, value) in document.figures.iter() {
            assert!(
                page.contains(&format!(
                    "<th scope=\"row\">{name}</th><td>{}</td>",
                    plain(value)
                )),
                "{name}"
            );
        }
        for phase in ["connect", "warm-up", "measure"] {
            assert!(page.contains(&format!(">{phase}</text>")), "{phase}");
        }
        assert!(page.contains("✕ 1 fault"));
    }

    #[test]
    fn the_page_fetches_nothing() {
        let page = page(&sample(5));
        for fetch in [
            "http://", "https://", " src=", " href=", "url(", "@import", "fetch(", "import ",
        ] {
            assert!(!page.contains(fetch), "{fetch}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn what_others_wrote_cannot_become_markup() {
        let mut document = sample(5);
        let hostile = "</script></style><img onerror='x()' \"&\u{1}>";
        document.command = hostile.into();
        document.scenario = hostile.into();
        document.host.processor = hostile.into();
        document.notes.push(hostile.into());
        document.faults.push(hostile.into());
        document.timeline.phases[0].name = hostile.into();
        document.timeline.points[3].servers[0].name = hostile.into();
        document.figures.set(hostile, 1.0);
        let histogram = document.histograms["latency"].clone();
        document.histograms.insert(hostile.into(), histogram);
        let page = page(&document);
        assert!(!page.contains("<img"));
        check_elements(&page);
    }

    #[test]
    fn a_run_of_hours_is_drawn_in_bounded_columns() {
        let mut document = sample(60);
        let minute = document.timeline.points.clone();
        document.timeline.points = (1..=86_400)
            .map(|second| Point {
                at_ms: second * 1000,
                ..minute[second as usize % minute.len()].clone()
            })
            .collect();
        let day = page(&document);
        check_elements(&day);
        assert!(day.len() < 1_500_000, "{} bytes", day.len());
        assert!(day.contains("A column is 144 seconds"));
    }

    #[test]
    fn a_run_without_a_timeline_has_a_page_too() {
        let mut document = sample(1);
        document.timeline = crate::report::Timeline::default();
        document.histograms.clear();
        let page = page(&document);
        assert!(!check_elements(&page).contains(&"svg".to_owned()));
        assert!(page.contains("kept no timeline"));
    }
}
