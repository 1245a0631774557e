//! Histograms between processes and in files: HDR V2, compressed, in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Deserializer as SerdeDeserializer, Serializer as SerdeSerializer};

/// Adds `other` to `sum`; both were made by [`crate::report::latency_histogram`].
pub fn add(sum: &mut Histogram<u64>, other: &Histogram<u64>) {
    sum.add(other).expect("all have the same bounds");
}

/// The text of a histogram.
pub fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(histogram, &mut bytes)
        .expect("memory takes it");
    STANDARD.encode(bytes)
}

/// Reads the text of a histogram that was made with the same bounds as all of this tool's.
///
/// # Errors
/// In words.
pub fn decode(text: &str) -> Result<Histogram<u64>, String> {
    let bytes = STANDARD
        .decode(text)
        .map_err(|error| format!("a histogram is not base64: {error}"))?;
    let read: Histogram<u64> = Deserializer::new()
        .deserialize(&mut bytes.as_slice())
        .map_err(|error| format!("a histogram cannot be decoded: {error}"))?;
    let mut histogram = crate::report::latency_histogram();
    histogram
        .add(&read)
        .map_err(|error| format!("a histogram of other bounds: {error}"))?;
    Ok(histogram)
}

/// For `serde(with)`.
///
/// # Errors
/// The serializer's.
pub fn serialize<S: SerdeSerializer>(
    histogram: &Histogram<u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(histogram))
}

/// For `serde(with)`.
///
/// # Errors
/// When it is no histogram.
pub fn deserialize<'de, D: SerdeDeserializer<'de>>(
    deserializer: D,
) -> Result<Histogram<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    decode(&text).map_err(serde::de::Error::custom)
}

/// The same for histograms by name.
pub mod map {
    use std::collections::BTreeMap;

    use serde::Serialize;

    use super::*;

    /// For `serde(with)`.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: SerdeSerializer>(
        map: &BTreeMap<String, Histogram<u64>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        map.iter()
            .map(|(name, histogram)| (name, encode(histogram)))
            .collect::<BTreeMap<_, _>>()
            .serialize(serializer)
    }

    /// For `serde(with)`.
    ///
    /// # Errors
    /// When one is no histogram.
    pub fn deserialize<'de, D: SerdeDeserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Histogram<u64>>, D::Error> {
        BTreeMap::<String, String>::deserialize(deserializer)?
            .into_iter()
            .map(|(name, text)| {
                let histogram = decode(&text).map_err(serde::de::Error::custom)?;
                Ok((name, histogram))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::latency_histogram;

    #[test]
    fn a_histogram_comes_back_as_it_was() {
        let mut histogram = latency_histogram();
        for value in [1_000, 1_234_567, 98_765_432_100, 600_000_000_000] {
            histogram.record_n(value, 7).unwrap();
        }
        assert_eq!(decode(&encode(&histogram)).unwrap(), histogram);
        assert!(decode("?").is_err() && decode("AAAA").is_err());
    }
}
