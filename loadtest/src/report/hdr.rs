//! The HDR histogram interval log: the format that the tools of the HDR histogram project read and plot.

use std::io::{self, BufWriter, Write};
use std::time::{Duration, SystemTime};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, IntervalLogWriterError};

use super::timeline::Interval;

/// Writes `intervals` of a run that began at `began_at`. Values are nanoseconds; the maximum of a line is in milliseconds, as
/// the readers of this format expect. Moments are seconds since the start time in the log's head.
///
/// # Errors
/// What `writer` says.
pub fn write(intervals: &[Interval], began_at: SystemTime, writer: impl Write) -> io::Result<()> {
    let mut writer = BufWriter::new(writer);
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment("[Values are nanoseconds; written by throng-load]")
        .with_start_time(began_at)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut writer, &mut serializer)?;
    for interval in intervals {
        log.write_histogram(
            &interval.histogram.unpack(),
            Duration::from_millis(interval.from_ms),
            Duration::from_millis(interval.length_ms),
            None,
        )
        .map_err(|error| match error {
            IntervalLogWriterError::IoError(error) => error,
            IntervalLogWriterError::SerializeError(error) => io::Error::other(error.to_string()),
        })?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use super::*;
    use crate::histogram::Packed;
    use crate::report::latency_histogram;

    #[test]
    fn a_log_is_read_back_as_it_was_written() {
        let intervals: Vec<Interval> = (1..=3)
            .map(|second| {
                let mut histogram = latency_histogram();
                histogram.record_n(second * 2_500_000, second * 10).unwrap();
                Interval {
                    from_ms: second * 1000,
                    length_ms: 1000,
                    histogram: Packed::new(&histogram),
                }
            })
            .collect();
        let began_at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
        let mut log = Vec::new();
        write(&intervals, began_at, &mut log).unwrap();

        let mut found = Vec::new();
        let mut start = None;
        for entry in IntervalLogIterator::new(&log) {
            match entry.unwrap() {
                LogEntry::StartTime(time) => start = Some(time),
                LogEntry::BaseTime(_) => panic!("moments are relative to the start"),
                LogEntry::Interval(line) => {
                    let bytes = STANDARD.decode(line.encoded_histogram()).unwrap();
                    let histogram: Histogram<u64> = Deserializer::new()
                        .deserialize(&mut bytes.as_slice())
                        .unwrap();
                    assert!((line.max() - histogram.max() as f64 / 1e6).abs() < 0.001);
                    found.push(Interval {
                        from_ms: line.start_timestamp().as_millis() as u64,
                        length_ms: line.duration().as_millis() as u64,
                        histogram: Packed::new(&histogram),
                    });
                }
            }
        }
        assert_eq!(start, Some(Duration::from_millis(1_700_000_000_250)));
        assert_eq!(found, intervals);
    }
}
