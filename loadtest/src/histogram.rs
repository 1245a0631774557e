//! Histograms between processes and in files: HDR V2, compressed, in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{
    Deserialize, Deserializer as SerdeDeserializer, Serialize, Serializer as SerdeSerializer,
};

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

/// A histogram that is kept, not used: some hundred bytes instead of 170 KiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed(String);

impl Packed {
    /// Packs it.
    pub fn new(histogram: &Histogram<u64>) -> Self {
        Self(encode(histogram))
    }

    /// The histogram.
    pub fn unpack(&self) -> Histogram<u64> {
        decode(&self.0).expect("it was looked at when it was packed or read")
    }

    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        let mut sum = self.unpack();
        add(&mut sum, &other.unpack());
        *self = Self::new(&sum);
    }
}

impl Serialize for Packed {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Packed {
    fn deserialize<D: SerdeDeserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(|histogram| Self::new(&histogram))
    }
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
        let mut packed = Packed::new(&histogram);
        assert_eq!(packed.unpack(), histogram);
        packed.add(&Packed::new(&histogram));
        assert_eq!(packed.unpack().len(), 2 * histogram.len());
        assert!(packed.0.len() < 1_000, "{}", packed.0.len());
        assert!(decode("?").is_err() && decode("AAAA").is_err());
    }
}
