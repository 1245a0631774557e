//! Histograms between processes and in files: HDR V2, compressed, in base64.

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{
    Deserialize, Deserializer as SerdeDeserializer, Serialize, Serializer as SerdeSerializer,
};

/// What a compressed HDR V2 histogram begins with; the bytes of what follows are next.
const COMPRESSED_COOKIE: [u8; 4] = 0x1c84_9314_u32.to_be_bytes();
/// Bytes of the head of a plain one: cookie, bytes of counts, offset, digits, lowest, highest, ratio.
const PLAIN_HEAD_BYTES: usize = 40;
/// Bytes of a plain one at most: nine for each of the counts, of which ours have 22 thousand.
const PLAIN_BYTES_MAX: u64 = 1 << 20;

/// Adds `other` to `sum`; both were made by [`crate::report::latency_histogram`].
pub fn add(sum: &mut Histogram<u64>, other: &Histogram<u64>) {
    sum.add(other).expect("all have the same bounds");
}

/// Takes what was recorded, if anything was.
pub fn take(histogram: &mut Histogram<u64>) -> Option<Histogram<u64>> {
    if histogram.is_empty() {
        return None;
    }
    let taken = histogram.clone();
    histogram.reset();
    Some(taken)
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
    let plain = inflated(&bytes)?;
    let read: Histogram<u64> = Deserializer::new()
        .deserialize(&mut plain.as_slice())
        .map_err(|error| format!("a histogram cannot be decoded: {error}"))?;
    let mut histogram = crate::report::latency_histogram();
    histogram
        .add(&read)
        .map_err(|error| format!("a histogram of other bounds: {error}"))?;
    Ok(histogram)
}

/// The plain HDR V2 form of a compressed one. It may be a stranger's: what its header announces, and would be taken memory
/// for, is held against what is there.
fn inflated(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let stream = bytes
        .strip_prefix(&COMPRESSED_COOKIE)
        .and_then(|rest| rest.get(4..)) // its length
        .ok_or("a histogram cannot be decoded: it is not HDR V2, compressed")?;
    let mut plain = Vec::new();
    ZlibDecoder::new(stream)
        .take(PLAIN_BYTES_MAX)
        .read_to_end(&mut plain)
        .map_err(|error| format!("a histogram cannot be decoded: {error}"))?;
    let announced = plain.get(4..8).and_then(|bytes| bytes.try_into().ok());
    let announced = announced.map(u32::from_be_bytes).unwrap_or_default() as usize;
    if plain.len() < PLAIN_HEAD_BYTES || announced != plain.len() - PLAIN_HEAD_BYTES {
        return Err("a histogram cannot be decoded: it is not as long as it says".into());
    }
    Ok(plain)
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

    /// Histograms that may be read at once: each takes memory by far beyond its text.
    const COUNT_MAX: usize = 64;

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
        let told = BTreeMap::<String, String>::deserialize(deserializer)?;
        if told.len() > COUNT_MAX {
            return Err(serde::de::Error::custom(format!(
                "more than {COUNT_MAX} histograms"
            )));
        }
        told.into_iter()
            .map(|(name, text)| {
                let histogram = decode(&text).map_err(serde::de::Error::custom)?;
                Ok((name, histogram))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

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

    #[test]
    fn a_histogram_that_announces_more_than_it_brings_is_refused_before_memory_is_taken() {
        let packed = |plain: &[u8]| {
            let mut stream = ZlibEncoder::new(Vec::new(), Compression::fast());
            stream.write_all(plain).unwrap();
            let stream = stream.finish().unwrap();
            let length = (stream.len() as u32).to_be_bytes();
            STANDARD.encode([&COMPRESSED_COOKIE, &length, stream.as_slice()].concat())
        };
        let honest = STANDARD.decode(encode(&latency_histogram())).unwrap();
        let mut plain = inflated(&honest).unwrap();
        assert!(decode(&packed(&plain)).is_ok());
        plain[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        let error = decode(&packed(&plain)).unwrap_err();
        assert!(error.contains("not as long as it says"), "{error}");
        assert!(decode(&packed(&vec![0; 64 << 20])).is_err());
    }
}
