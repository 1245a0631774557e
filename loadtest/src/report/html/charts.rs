//! Which plots a page has, and what is in each: the timeline's columns, the phases, the histograms.

use super::plot::{Band, Plot, Scale, Series};
use crate::report::figures::Unit;
use crate::report::json::Document;
use crate::report::timeline::{MEASURE, Percentiles, Point, ServerPoint};

/// Columns of a plot at most; longer runs have several seconds in each.
const COLUMN_COUNT_MAX: usize = 600;
/// Servers that are drawn; the file has all.
const SERVER_COUNT_MAX: usize = 6;
/// Colours for things of a kind.
const CLASSES: [&str; SERVER_COUNT_MAX] = ["c1", "c2", "c3", "c4", "c5", "c6"];

/// Writes all plots of a run.
pub fn write(document: &Document, out: &mut String) {
    if document.timeline.points.is_empty() {
        out.push_str("<p>This run kept no timeline.</p>\n");
    }
    out.push_str("<div class=\"plots\">\n");
    if !document.timeline.points.is_empty() {
        Columns::of(document).write(out);
    }
    write_distribution(document, out);
    out.push_str("</div>\n");
}

/// The timeline in columns of one or more seconds.
struct Columns<'a> {
    chunks: Vec<&'a [Point]>,
    /// Seconds since the run began.
    xs: Vec<f64>,
    labels: Vec<String>,
    range: (f64, f64),
    ticks: Vec<(f64, String)>,
    bands: Vec<Band>,
    /// Says when a column is more than a second.
    hint: String,
}

impl<'a> Columns<'a> {
    fn of(document: &'a Document) -> Self {
        let points = &document.timeline.points;
        let seconds_each = points.len().div_ceil(COLUMN_COUNT_MAX);
        let chunks: Vec<&[Point]> = points.chunks(seconds_each).collect();
        let xs: Vec<f64> = chunks
            .iter()
            .map(|chunk| chunk[chunk.len() - 1].at_ms as f64 / 1e3)
            .collect();
        let to = xs[xs.len() - 1];
        let phases = &document.timeline.phases;
        let name_at = |second: f64| {
            let mut earlier = phases.iter().rev();
            earlier.find(|phase| phase.from_ms as f64 / 1e3 < second)
        };
        let labels = xs
            .iter()
            .map(|x| match name_at(*x) {
                Some(phase) => format!("{} {}", clock(*x), phase.name),
                None => clock(*x),
            })
            .collect();
        let bands = phases.iter().enumerate().map(|(index, phase)| Band {
            name: phase.name.clone(),
            range: (
                phase.from_ms as f64 / 1e3,
                phases
                    .get(index + 1)
                    .map_or(to, |next| next.from_ms as f64 / 1e3),
            ),
            shaded: phase.name != MEASURE,
        });
        Self {
            labels,
            range: (0.0, to),
            ticks: time_ticks(to),
            bands: bands.collect(),
            hint: match seconds_each {
                1 => String::new(),
                each => format!(
                    " A column is {each} seconds: the mean of rates, the worst of latencies."
                ),
            },
            chunks,
            xs,
        }
    }

    fn plot(
        &self,
        title: &str,
        caption: &str,
        unit: Unit,
        scale: Scale,
        series: Vec<Series>,
        out: &mut String,
    ) {
        Plot {
            title,
            caption: format!("{caption}{}", self.hint),
            unit,
            scale,
            xs: &self.xs,
            x_range: self.range,
            x_ticks: self.ticks.clone(),
            x_labels: &self.labels,
            series,
            bands: &self.bands,
        }
        .write(out);
    }

    /// The mean over each column.
    fn mean(&self, of: impl Fn(&Point) -> f64) -> Vec<Option<f64>> {
        let mean = |chunk: &&[Point]| chunk.iter().map(&of).sum::<f64>() / chunk.len() as f64;
        self.chunks.iter().map(mean).map(Some).collect()
    }

    fn line(&self, name: &str, class: &'static str, of: impl Fn(&Point) -> f64) -> Series {
        Series {
            name: name.into(),
            class,
            values: self.mean(of),
            base: None,
        }
    }

    fn has(&self, of: impl Fn(&Point) -> bool) -> bool {
        self.chunks.iter().any(|chunk| chunk.iter().any(&of))
    }

    fn write(&self, out: &mut String) {
        self.write_latency(out);
        if self.has(|point| point.delivered > 0) {
            let delivered = self.line("received", "c1", |point| point.per_s(point.delivered));
            self.plot(
                "Deliveries",
                "Messages received, each second.",
                Unit::PerSecond,
                Scale::Linear,
                vec![delivered],
                out,
            );
        }
        if self.has(|point| point.published > 0) {
            let published = self.line("published", "c3", |point| point.per_s(point.published));
            self.plot(
                "Publishes",
                "Messages sent to be delivered, each second.",
                Unit::PerSecond,
                Scale::Linear,
                vec![published],
                out,
            );
        }
        if self.has(|point| point.faults > 0) {
            let faults = self.line("faults", "bad", |point| point.per_s(point.faults));
            self.plot(
                "Faulty deliveries",
                "Lost, doubled, out of order or corrupted, each second.",
                Unit::PerSecond,
                Scale::Linear,
                vec![faults],
                out,
            );
        }
        let open = self.line("open", "c1", |point| point.open as f64);
        self.plot(
            "Open connections",
            "Upgraded and not closed.",
            Unit::Count,
            Scale::Linear,
            vec![open],
            out,
        );
        self.write_handshakes(out);
        self.write_processors(out);
        self.write_memory(out);
    }

    fn write_latency(&self, out: &mut String) {
        type Quantile = fn(&Percentiles) -> u64;
        let quantiles: [(&str, &'static str, Quantile); 5] = [
            ("p50", "q1", |latency| latency.p50_ns),
            ("p90", "q2", |latency| latency.p90_ns),
            ("p99", "q3", |latency| latency.p99_ns),
            ("p99.9", "q4", |latency| latency.p99_9_ns),
            ("max", "q5", |latency| latency.max_ns),
        ];
        if !self.has(|point| point.latency.is_some()) {
            return;
        }
        let series = quantiles.map(|(name, class, of)| Series {
            name: name.into(),
            class,
            values: self
                .chunks
                .iter()
                .map(|chunk| {
                    let latencies = chunk.iter().filter_map(|point| point.latency.as_ref());
                    latencies.map(of).max().map(|ns| ns as f64)
                })
                .collect(),
            base: None,
        });
        self.plot(
            "Latency over time",
            "Percentiles of the messages received in each second; logarithmic.",
            Unit::Time(1),
            Scale::Logarithmic,
            series.into(),
            out,
        );
    }

    fn write_handshakes(&self, out: &mut String) {
        let mut series = Vec::new();
        if self.has(|point| point.upgraded > 0) {
            series.push(self.line("upgraded", "c1", |point| point.per_s(point.upgraded)));
        }
        if self.has(|point| point.closed > 0) {
            series.push(self.line("closed", "c2", |point| point.per_s(point.closed)));
        }
        if self.has(|point| point.failed > 0) {
            series.push(self.line("failed", "bad", |point| point.per_s(point.failed)));
        }
        if !series.is_empty() {
            self.plot(
                "Handshakes",
                "Connections upgraded, closed and failed, each second.",
                Unit::PerSecond,
                Scale::Linear,
                series,
                out,
            );
        }
    }

    /// Names of the servers, in the order of their first point.
    fn server_names(&self) -> Vec<&'a str> {
        let mut names: Vec<&str> = Vec::new();
        for server in self
            .chunks
            .iter()
            .flat_map(|chunk| chunk.iter())
            .flat_map(|point| &point.servers)
        {
            if !names.contains(&server.name.as_str()) {
                names.push(&server.name);
            }
        }
        names.truncate(SERVER_COUNT_MAX);
        names
    }

    /// A server's mean over each column; none where it was not looked at.
    fn server(&self, name: &str, of: impl Fn(&ServerPoint) -> f64) -> Vec<Option<f64>> {
        let mean = |chunk: &&[Point]| {
            let found: Vec<f64> = chunk
                .iter()
                .flat_map(|point| &point.servers)
                .filter(|server| server.name == name)
                .map(&of)
                .collect();
            (!found.is_empty()).then(|| found.iter().sum::<f64>() / found.len() as f64)
        };
        self.chunks.iter().map(mean).collect()
    }

    fn write_processors(&self, out: &mut String) {
        let generator = || {
            self.line("generator, busiest thread", "c3", |point| {
                point.client_share
            })
        };
        let names = self.server_names();
        for name in &names {
            let user = self.server(name, |server| server.user_share);
            let both = self.server(name, |server| server.user_share + server.system_share);
            let base = user.iter().map(|value| value.unwrap_or(0.0)).collect();
            let series = vec![
                Series {
                    name: "user".into(),
                    class: "c1",
                    base: Some(vec![0.0; user.len()]),
                    values: user,
                },
                Series {
                    name: "system".into(),
                    class: "c2",
                    values: both,
                    base: Some(base),
                },
                Series {
                    name: "busiest thread".into(),
                    class: "ink",
                    values: self.server(name, |server| server.busiest_thread_share),
                    base: None,
                },
                generator(),
            ];
            self.plot(
                &format!("Processor time, server {name}"),
                "100 % is one core: user and system stacked; lines are single threads.",
                Unit::Share,
                Scale::Linear,
                series,
                out,
            );
        }
        if names.is_empty() {
            self.plot(
                "Processor time, generator",
                "Its busiest thread; 100 % is one core.",
                Unit::Share,
                Scale::Linear,
                vec![generator()],
                out,
            );
        }
    }

    fn write_memory(&self, out: &mut String) {
        let names = self.server_names();
        if names.is_empty() {
            return;
        }
        let mut series: Vec<Series> = names
            .iter()
            .zip(CLASSES)
            .map(|(name, class)| Series {
                name: format!("resident, {name}"),
                class,
                values: self.server(name, |server| server.rss_bytes as f64),
                base: None,
            })
            .collect();
        // The kernel's books are per machine: of several servers on one, each tells the same.
        series.push(
            self.line("TCP in the kernel, all processes", "ink", |point| {
                let each = point.servers.iter().map(|server| server.tcp_memory_bytes);
                each.max().unwrap_or(0) as f64
            }),
        );
        self.plot(
            "Memory of the servers",
            "Resident memory of each process, and the kernel's for TCP.",
            Unit::Bytes,
            Scale::Linear,
            series,
            out,
        );
    }
}

/// The latency distributions: value over quantile, stretched towards the tail so that each further nine is as wide.
fn write_distribution(document: &Document, out: &mut String) {
    let histograms: Vec<_> = document
        .histograms
        .iter()
        .filter(|(_, latency)| !latency.0.is_empty())
        .take(CLASSES.len())
        .collect();
    let Some(most) = histograms.iter().map(|(_, latency)| latency.0.len()).max() else {
        return;
    };
    // Place x is the quantile 1 - 10^-x; beyond one in the count there is nothing but the maximum.
    let nines = |count: u64| (count as f64).log10().clamp(1.0, 7.0);
    let last = nines(most);
    let xs: Vec<f64> = (0..=160)
        .map(|step| f64::from(step) / 160.0 * last)
        .collect();
    let quantile = |x: f64| 1.0 - 10_f64.powf(-x);
    let labels: Vec<String> = xs
        .iter()
        .map(|x| {
            let places = (x - 1.0).max(1.0).ceil() as usize;
            format!("{:.places$} %", quantile(*x) * 100.0)
        })
        .collect();
    let ticks = [
        (0.301, "50 %"),
        (1.0, "90 %"),
        (2.0, "99 %"),
        (3.0, "99.9 %"),
        (4.0, "99.99 %"),
        (5.0, "99.999 %"),
        (6.0, "99.9999 %"),
        (7.0, "99.99999 %"),
    ];
    let series = histograms
        .iter()
        .zip(CLASSES)
        .map(|((name, latency), class)| Series {
            name: (*name).clone(),
            class,
            values: xs
                .iter()
                .map(|x| {
                    let told = *x <= nines(latency.0.len()) + 1e-9;
                    told.then(|| latency.0.value_at_quantile(quantile(*x)) as f64)
                })
                .collect(),
            base: None,
        })
        .collect();
    let mut caption = String::from(
        "How long at most that share took; each further nine is as wide, up to one in the count.",
    );
    if let [(name, _)] = histograms.as_slice() {
        caption.insert_str(0, &format!("{name}. "));
    }
    Plot {
        title: "Latency distribution",
        caption,
        unit: Unit::Time(1),
        scale: Scale::Logarithmic,
        xs: &xs,
        x_range: (0.0, last),
        x_ticks: ticks
            .iter()
            .filter(|(x, _)| *x <= last)
            .map(|(x, label)| (*x, (*label).to_owned()))
            .collect(),
        x_labels: &labels,
        series,
        bands: &[],
    }
    .write(out);
}

/// Seconds as `12 s`, `3:05` or `1:00:00`.
fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..=119 => format!("{whole} s"),
        120..=3599 => format!("{}:{:02}", whole / 60, whole % 60),
        _ => format!("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60),
    }
}

fn time_ticks(to: f64) -> Vec<(f64, String)> {
    let steps = [
        1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 28_800, 86_400,
    ];
    let step = steps
        .into_iter()
        .map(f64::from)
        .find(|step| to / step <= 10.0)
        .unwrap_or((to / 10.0).ceil());
    (0..=(to / step) as u64)
        .map(|index| index as f64 * step)
        .map(|second| (second, clock(second)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_marked_at_round_moments() {
        let labels =
            |to| -> Vec<String> { time_ticks(to).into_iter().map(|(_, label)| label).collect() };
        assert_eq!(labels(5.0), ["0 s", "1 s", "2 s", "3 s", "4 s", "5 s"]);
        assert_eq!(
            labels(130.0),
            [
                "0 s", "15 s", "30 s", "45 s", "60 s", "75 s", "90 s", "105 s", "2:00"
            ]
        );
        assert_eq!(labels(7_200.0)[1], "15:00");
        assert!(labels(5e6).len() <= 12);
    }
}
