//! The report as a JSON file, `throng-load/1`, and back. The schema is described in docs/LOAD-REPORT.md.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use hdrhistogram::Histogram;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::figures::Figures;
use super::host::Host;
use super::timeline::Timeline;
use crate::failure::Failure;
use crate::histogram;

/// The schema that is written, and the only one that is read.
pub const SCHEMA: &str = "throng-load/1";
/// The quantiles that are written beside a histogram, for readers that cannot decode it.
const QUANTILES: [f64; 14] = [
    0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999, 1.0,
];

/// All that is known of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was asked of the server.
    pub scenario: String,
    /// The command line.
    pub command: String,
    /// When, RFC 3339.
    pub began_at: String,
    /// From then to the last figure.
    pub seconds: f64,
    /// The generator's version.
    pub version: String,
    /// The generator's machine.
    pub host: Host,
    /// By name.
    pub figures: Figures,
    /// By name; nanoseconds.
    #[serde(default)]
    pub histograms: BTreeMap<String, Latency>,
    /// By the second.
    #[serde(default)]
    pub timeline: Timeline,
    /// Remarks.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What must not be.
    #[serde(default)]
    pub faults: Vec<String>,
}

impl Document {
    /// Writes it to a file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let write = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(path)?);
            serde_json::to_writer_pretty(&mut file, self)?;
            writeln!(file)?;
            file.flush()
        };
        write().map_err(|error| Failure::Usage(format!("--json {}: {error}", path.display())))
    }

    /// Reads one from a file.
    ///
    /// # Errors
    /// When the file cannot be read, is no report, or has another schema.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: String| Failure::Usage(format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            schema: Option<String>,
        }
        let head: Head = serde_json::from_str(text)
            .map_err(|error| format!("this is not a report of throng-load: {error}"))?;
        match head.schema.as_deref() {
            Some(SCHEMA) => serde_json::from_str(text)
                .map_err(|error| format!("this report is damaged: {error}")),
            Some(other) => Err(format!(
                "this report has the schema {other:?}; this version reads {SCHEMA:?}"
            )),
            None => Err(format!(
                "this is not a report of throng-load, or of a version before {SCHEMA:?}: it names no schema"
            )),
        }
    }
}

/// A histogram of nanoseconds. In JSON: its percentiles, and the whole of it in the HDR histogram's V2 encoding.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency(pub Histogram<u64>);

#[derive(Serialize, Deserialize)]
struct StoredLatency {
    unit: String,
    significant_digits: u8,
    count: u64,
    percentiles: Vec<(f64, u64)>,
    #[serde(with = "histogram")]
    v2deflate: Histogram<u64>,
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(histogram) = self;
        StoredLatency {
            unit: "ns".into(),
            significant_digits: histogram.sigfig(),
            count: histogram.len(),
            percentiles: QUANTILES
                .map(|quantile| (quantile, histogram.value_at_quantile(quantile)))
                .into(),
            v2deflate: histogram.clone(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stored = StoredLatency::deserialize(deserializer)?;
        if stored.unit != "ns" {
            return Err(D::Error::custom(format!(
                "a histogram in {:?}, not in ns",
                stored.unit
            )));
        }
        if stored.count != stored.v2deflate.len() {
            return Err(D::Error::custom(format!(
                "a histogram of {} values says that it has {}",
                stored.v2deflate.len(),
                stored.count
            )));
        }
        Ok(Self(stored.v2deflate))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::histogram::Packed;
    use crate::report::Report;
    use crate::report::latency_histogram;
    use crate::report::timeline::{Interval, Percentiles, Phase, Point, ServerPoint};

    fn report() -> Report {
        let mut report = Report::new("fanout");
        report.count("lost", 0);
        report.figure("deliveries_per_s", 1234.5);
        let mut histogram = latency_histogram();
        for us in 1..=1000 {
            histogram.record(us * 1000).unwrap();
        }
        report.latency("latency", &histogram);
        report.note("said \"so\" <b>");
        report.fault("one");
        report.timeline(Timeline {
            points: vec![Point {
                at_ms: 1000,
                delivered: 1000,
                latency: Percentiles::of(&histogram),
                client_share: 0.25,
                servers: vec![ServerPoint {
                    name: "pid 7".into(),
                    connections: Some(3),
                    ..ServerPoint::default()
                }],
                ..Point::default()
            }],
            phases: vec![Phase {
                name: "measure".into(),
                from_ms: 0,
            }],
            intervals: vec![Interval {
                from_ms: 0,
                length_ms: 1000,
                histogram: Packed::new(&histogram),
            }],
        });
        report
    }

    #[test]
    fn a_report_is_read_back_whole() {
        let directory =
            std::env::temp_dir().join(format!("throng-load-json-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("report.json");
        let report = report();
        report.write_json(&path).unwrap();
        let read = Document::read(&path).unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(read, report.document);
        assert!(report.write_json(&path).is_err(), "the directory is gone");
    }

    #[test]
    fn the_schema_is_what_the_documentation_says() {
        let value = serde_json::to_value(&report().document).unwrap();
        assert_eq!(value["schema"], "throng-load/1");
        assert_eq!(value["scenario"], "fanout");
        assert_eq!(value["figures"]["lost"], 0);
        assert_eq!(value["figures"]["deliveries_per_s"], 1234.5);
        assert!(value["figures"]["latency_p99_ms"].is_number());
        let histogram = &value["histograms"]["latency"];
        assert_eq!(histogram["unit"], "ns");
        assert_eq!(histogram["significant_digits"], 3);
        assert_eq!(histogram["count"], 1000);
        assert_eq!(histogram["percentiles"][2][0], 0.5);
        assert!(
            histogram["v2deflate"]
                .as_str()
                .unwrap()
                .starts_with("HISTFAAA")
        );
        assert_eq!(
            value["timeline"]["points"][0]["servers"][0]["connections"],
            3
        );
        assert_eq!(value["timeline"]["phases"][0]["name"], "measure");
        assert!(value["timeline"]["intervals"][0]["histogram"].is_string());
        for key in [
            "command", "began_at", "seconds", "version", "host", "notes", "faults",
        ] {
            assert!(!value[key].is_null(), "{key}");
        }
    }

    #[test]
    fn what_is_no_report_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "not a report"),
            ("[1,2]", "not a report"),
            ("{\"a\":1}", "names no schema"),
            ("{\"schema\":\"throng-load/9\"}", "throng-load/9"),
            ("{\"schema\":\"throng-load/1\"}", "damaged"),
        ] {
            let error = Document::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let whole = serde_json::to_string(&report().document).unwrap();
        assert!(Document::parse(&whole).is_ok());
        for (from, to, reason) in [
            (
                "\"count\":1000,\"percentiles\"",
                "\"count\":999,\"percentiles\"",
                "says that it has 999",
            ),
            ("\"unit\":\"ns\"", "\"unit\":\"ms\"", "not in ns"),
            ("\"v2deflate\":\"HIST", "\"v2deflate\":\"!!!!", "base64"),
            ("\"v2deflate\":\"HIST", "\"v2deflate\":\"AAAA", "decoded"),
        ] {
            assert!(whole.contains(from), "{from}");
            let error = Document::parse(&whole.replace(from, to)).unwrap_err();
            assert!(
                error.contains("damaged") && error.contains(reason),
                "{error}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_histogram_survives_json(values in prop::collection::vec((1_000_u64..600_000_000_000, 1_u64..1_000_000), 0..50)) {
            let mut histogram = latency_histogram();
            for (value, count) in values {
                histogram.record_n(value, count).unwrap();
            }
            let text = serde_json::to_string(&Latency(histogram.clone())).unwrap();
            let Latency(read) = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.len(), histogram.len());
            prop_assert_eq!(read.max(), histogram.max());
            for quantile in QUANTILES {
                prop_assert_eq!(read.value_at_quantile(quantile), histogram.value_at_quantile(quantile));
            }
            prop_assert_eq!(read, histogram);
        }
    }
}
