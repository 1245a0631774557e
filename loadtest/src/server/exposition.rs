//! The text of a metrics endpoint: Prometheus 0.0.4 or OpenMetrics 1.0, read into named series of values.
//!
//! Strict, as the scrapers are: a line that is none is an error with its number, so that nobody plans with half a scrape.
//! Time stamps and exemplars are passed over.

use std::collections::HashMap;
use std::fmt;

/// Of a line that is wrong, so many characters are shown.
const SHOWN_CHARACTERS_MAX: usize = 60;

/// What kind a family says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, until its process starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound, the label `le`.
    Histogram,
    /// It says something else, or nothing.
    Other,
}

/// One value with its name and labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// The sample's name: for a counter mostly with `_total`.
    pub name: String,
    /// Names and values of its labels, in the text's order.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

impl Series {
    /// The value of label `name`.
    pub fn label(&self, name: &str) -> Option<&str> {
        let (_, value) = self.labels.iter().find(|(found, _)| found == name)?;
        Some(value)
    }
}

/// What an endpoint told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exposition {
    /// The kinds that were declared, by the name in the declaration.
    kinds: HashMap<String, Kind>,
    /// The values, in the text's order.
    pub series: Vec<Series>,
}

impl Exposition {
    /// Reads the text.
    ///
    /// # Errors
    /// The first line that is neither empty, a comment nor a sample.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let mut exposition = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if let Some(comment) = line.strip_prefix('#') {
                exposition.read_comment(comment);
            } else if !line.is_empty() {
                let series = Reader { rest: line }
                    .sample()
                    .ok_or_else(|| Malformed::new(index + 1, line))?;
                exposition.series.push(series);
            }
        }
        Ok(exposition)
    }

    /// The kind of the family that a sample belongs to, and the family's name without `_total`.
    pub fn family<'a>(&self, sample: &'a str) -> (Kind, &'a str) {
        let stem = sample.strip_suffix("_total").unwrap_or(sample);
        if let Some(kind) = self.kinds.get(sample).or_else(|| self.kinds.get(stem)) {
            return (*kind, stem);
        }
        // The parts of a histogram, a summary or an info, and the moments at which counters were made.
        let parts = ["_bucket", "_sum", "_count", "_created", "_info"];
        let part = parts
            .into_iter()
            .filter_map(|part| sample.strip_suffix(part))
            .find_map(|family| Some((*self.kinds.get(family)?, family)));
        match part {
            Some((Kind::Histogram, family)) => (Kind::Histogram, family),
            Some((_, family)) => (Kind::Other, family),
            None if stem.len() < sample.len() => (Kind::Counter, stem),
            None => (Kind::Gauge, sample), // undeclared: a value is all that is known of it
        }
    }

    /// `TYPE name kind`; any other comment says nothing here.
    fn read_comment(&mut self, comment: &str) {
        let mut words = comment.split_whitespace();
        if words.next() == Some("TYPE")
            && let (Some(name), Some(kind)) = (words.next(), words.next())
        {
            let kind = match kind {
                "counter" => Kind::Counter,
                "gauge" | "unknown" | "untyped" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                _ => Kind::Other,
            };
            self.kinds.insert(name.trim_matches('"').to_owned(), kind);
        }
    }
}

/// A line that is no sample.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed {
    line_number: usize,
    start: String,
}

impl Malformed {
    fn new(line_number: usize, line: &str) -> Self {
        Self {
            line_number,
            start: line.chars().take(SHOWN_CHARACTERS_MAX).collect(),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line_number, start } = self;
        write!(formatter, "line {line_number} is no metric: {start:?}")
    }
}

/// Takes a line apart from its front. Every method is None when what it looks for is not there.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// `name{label="value",…} value timestamp # exemplar`, or with the name quoted within the braces.
    fn sample(mut self) -> Option<Series> {
        let mut name = self.name(true).unwrap_or_default();
        let mut labels = Vec::new();
        self.space();
        if self.take('{') {
            loop {
                self.space();
                if self.take('}') {
                    break;
                }
                let quoted = self.rest.starts_with('"');
                let label = if quoted {
                    self.quoted()?
                } else {
                    self.name(false)?
                };
                self.space();
                if self.take('=') {
                    self.space();
                    labels.push((label, self.quoted()?));
                } else if quoted && name.is_empty() {
                    name = label;
                } else {
                    return None;
                }
                self.space();
                if !self.take(',') && !self.rest.starts_with('}') {
                    return None;
                }
            }
        }
        if name.is_empty() {
            return None;
        }
        let values = match self.rest.split_once(" #") {
            Some((values, _exemplar)) => values,
            None => self.rest,
        };
        let mut values = values.split_whitespace();
        let value = values.next()?.parse().ok()?;
        let timestamp = values.next().map(str::parse::<f64>);
        let is_whole = values.next().is_none() && !matches!(timestamp, Some(Err(_)));
        is_whole.then_some(Series {
            name,
            labels,
            value,
        })
    }

    /// A name: letters, digits and `_`, and `:` in the name of a metric; no digit first.
    fn name(&mut self, colons: bool) -> Option<String> {
        let is_name = |character: char| {
            character.is_ascii_alphanumeric() || character == '_' || (colons && character == ':')
        };
        let end = self.rest.find(|character| !is_name(character));
        let (name, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        self.rest = rest;
        Some(name.to_owned())
    }

    /// A text in quotation marks, with `\\`, `\"` and `\n` in it.
    fn quoted(&mut self) -> Option<String> {
        let mut characters = self.rest.strip_prefix('"')?.chars();
        let mut text = String::new();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => match characters.next()? {
                    'n' => text.push('\n'),
                    escaped @ ('\\' | '"') => text.push(escaped),
                    other => text.extend(['\\', other]),
                },
                character => text.push(character),
            }
        }
        self.rest = characters.as_str();
        Some(text)
    }

    fn take(&mut self, character: char) -> bool {
        let rest = self.rest.strip_prefix(character);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"
# HELP http_requests_total The total number of HTTP requests.
# TYPE http_requests_total counter
http_requests_total{method="post",code="200"} 1027 1395066363000
http_requests_total{method="post",code="400",}    3 1395066363000
msdos_file_access_time_seconds{path="C:\\DIR\\FILE.TXT",error="Cannot find file:\n\"FILE.TXT\""} 1.458255915e9
metric_without_timestamp_and_labels 12.47
something_weird{problem="division by zero"} +Inf -3982045
# TYPE lag_seconds histogram
lag_seconds_bucket{le="0.05"} 24054 # {trace="a b"} 0.01 1.5
lag_seconds_bucket { le = "+Inf" } 144320
lag_seconds_sum 53423
lag_seconds_count 144320
# TYPE foo counter
foo_total 17.0 1520879607.789
foo_created 1520430000.123
# TYPE build info
build_info{version="{1} #"} 1
# TYPE temperature gauge
temperature NaN
{"quoted.name","a label"="x"} 2
late_total 5
# EOF
"#;

    #[test]
    fn both_formats_are_read_with_labels_stamps_and_exemplars() {
        let read = Exposition::parse(TEXT).unwrap();
        assert_eq!(read.series.len(), 15);
        assert_eq!(read.series[0].label("code"), Some("200"));
        assert_eq!(read.series[1].value, 3.0);
        assert_eq!(read.series[2].label("path"), Some(r"C:\DIR\FILE.TXT"));
        assert_eq!(
            read.series[2].label("error"),
            Some("Cannot find file:\n\"FILE.TXT\"")
        );
        assert_eq!(read.series[4].value, f64::INFINITY);
        assert_eq!(read.series[6].label("le"), Some("+Inf"));
        assert!(read.series[12].value.is_nan());
        assert_eq!(read.series[13].name, "quoted.name");
        assert_eq!(read.series[13].label("a label"), Some("x"));
        for (sample, family) in [
            ("http_requests_total", (Kind::Counter, "http_requests")),
            ("foo_total", (Kind::Counter, "foo")),
            ("foo_created", (Kind::Other, "foo")),
            ("build_info", (Kind::Other, "build")),
            ("lag_seconds_bucket", (Kind::Histogram, "lag_seconds")),
            ("temperature", (Kind::Gauge, "temperature")),
            ("late_total", (Kind::Counter, "late")),
            ("never_seen", (Kind::Gauge, "never_seen")),
        ] {
            assert_eq!(read.family(sample), family, "{sample}");
        }
    }

    #[test]
    fn a_line_that_is_no_sample_is_named() {
        for wrong in [
            "<html>",
            "name",
            "name x",
            "name 1 2 3",
            "name 1 soon",
            "1name 1",
            "name{a=\"b\" 1",
            "name{a=\"b} 1",
            "name{a=b} 1",
            "name{a} 1",
            "name{\"a\"} 1",
            "name{a=\"b\"c=\"d\"} 1",
            "{} 1",
            "{\"a\",\"b\"} 1",
            "näme 1",
        ] {
            let text = format!("fine 1\n{wrong}\n");
            let error = Exposition::parse(&text).unwrap_err().to_string();
            assert!(error.starts_with("line 2 is no metric: "), "{error}");
        }
        let long = "é".repeat(1000);
        let error = Exposition::parse(&long).unwrap_err().to_string();
        assert!(error.chars().count() < 100, "{error}");
    }

    fn series() -> impl Strategy<Value = Series> {
        let labels = prop::collection::vec(("[a-zA-Z_][a-zA-Z0-9_]{0,5}", any::<String>()), 0..4);
        let name = "[a-zA-Z_:][a-zA-Z0-9_:]{0,10}";
        (name, labels, any::<f64>()).prop_map(|(name, labels, value)| Series {
            name,
            labels,
            value,
        })
    }

    fn written(series: &Series) -> String {
        let labels: Vec<String> = series
            .labels
            .iter()
            .map(|(name, value)| {
                let value = value.replace('\\', r"\\").replace('"', "\\\"");
                format!("{name}=\"{}\"", value.replace('\n', r"\n"))
            })
            .collect();
        format!("{}{{{}}} {}\n", series.name, labels.join(","), series.value)
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in any::<String>()) {
            let _ = Exposition::parse(&text);
        }

        #[test]
        fn texts_that_look_like_metrics_are_read_or_refused(text in "[a{}\"\\\\=, #1.e+\nTYPE]{0,40}") {
            let _ = Exposition::parse(&text);
        }

        #[test]
        fn what_was_written_is_read_again(all in prop::collection::vec(series(), 0..5)) {
            let text: String = all.iter().map(written).collect();
            let read = Exposition::parse(&text).unwrap();
            prop_assert_eq!(read.series.len(), all.len());
            for (read, wrote) in read.series.iter().zip(&all) {
                prop_assert_eq!(&read.name, &wrote.name);
                prop_assert_eq!(&read.labels, &wrote.labels);
                prop_assert_eq!(read.value.to_bits(), wrote.value.to_bits());
            }
        }
    }
}
