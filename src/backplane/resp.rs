//! RESP: commands to bytes, bytes to replies. The only home of redis-protocol.
//!
//! Both protocol versions are read: RESP3 as `HELLO 3` agrees on it, and RESP2 where the server knows no HELLO. Commands
//! look the same in both (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).

use bytes::{Bytes, BytesMut};
use redis_protocol::resp2;
use redis_protocol::resp3;
use redis_protocol::resp3::types::{BorrowedFrame, DecodedFrame};

/// Appends a command and its arguments.
pub fn encode_command(out: &mut BytesMut, words: &[&[u8]]) {
    let words: Vec<BorrowedFrame<'_>> = words
        .iter()
        .map(|data| BorrowedFrame::BlobString {
            data,
            attributes: None,
        })
        .collect();
    let frame = BorrowedFrame::Array {
        data: &words,
        attributes: None,
    };
    resp3::encode::complete::extend_encode_borrowed(out, &frame, false)
        .expect("an array of texts is encoded into a buffer that grows");
}

/// What the server says, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A message on a channel that the link is subscribed to.
    Message {
        /// The channel.
        channel: Bytes,
        /// What was published.
        payload: Bytes,
    },
    /// The subscription to a channel stands.
    Subscribed {
        /// The channel.
        channel: Bytes,
    },
    /// The subscription to a channel has ended; `None`: there was none to end.
    Unsubscribed {
        /// The channel.
        channel: Option<Bytes>,
    },
    /// A number: how many subscribers a publish has reached.
    Number(i64),
    /// A text: `OK`, or what was asked for.
    Text(Bytes),
    /// An error in the server's words, its code first.
    Error(String),
    /// Fields and their values, those that are texts or numbers.
    Fields(Vec<(String, String)>),
    /// Replies in their order; a set's in any.
    List(Vec<Self>),
    /// There is nothing of that name.
    Nil,
    /// Anything else.
    Other,
}

/// What came is not RESP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotResp;

/// Which version is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Redis before 6.0, and servers without HELLO.
    Resp2,
    /// Agreed on by `HELLO 3`.
    Resp3,
}

/// Bytes in, replies out.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    version: Version,
}

impl Decoder {
    /// A decoder that has been fed nothing.
    #[must_use]
    pub fn new(version: Version) -> Self {
        Self {
            buffer: BytesMut::new(),
            version,
        }
    }

    /// From here on the other version is spoken.
    pub fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// Takes bytes in.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that are no whole reply yet.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        &self.buffer
    }

    /// The next whole reply.
    ///
    /// # Errors
    /// [`NotResp`]; what could not be read is left in [`Self::waiting`].
    pub fn next_reply(&mut self) -> Result<Option<Reply>, NotResp> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        match self.version {
            Version::Resp3 => {
                let decoded = resp3::decode::streaming::decode_bytes_mut(&mut self.buffer);
                match decoded.map_err(|_| NotResp)? {
                    Some((DecodedFrame::Complete(frame), _, _)) => Ok(Some(of_resp3(frame))),
                    Some((DecodedFrame::Streaming(_), _, _)) => Err(NotResp), // Redis never streams
                    None => Ok(None),
                }
            }
            Version::Resp2 => {
                let decoded = resp2::decode::decode_bytes_mut(&mut self.buffer);
                Ok(decoded
                    .map_err(|_| NotResp)?
                    .map(|(frame, _, _)| of_resp2(frame)))
            }
        }
    }
}

fn of_resp3(frame: resp3::types::BytesFrame) -> Reply {
    use resp3::types::BytesFrame as Frame;
    match frame {
        Frame::Push { data, .. } => {
            let texts = data.into_iter().map(|frame| match frame {
                Frame::BlobString { data, .. } | Frame::SimpleString { data, .. } => Some(data),
                _ => None,
            });
            of_push(texts).unwrap_or(Reply::Other)
        }
        Frame::Array { data, .. } => Reply::List(data.into_iter().map(of_resp3).collect()),
        Frame::Set { data, .. } => Reply::List(data.into_iter().map(of_resp3).collect()),
        Frame::Double { data, .. } => Reply::Text(Bytes::from(data.to_string())),
        Frame::Null => Reply::Nil,
        Frame::Number { data, .. } => Reply::Number(data),
        Frame::BlobString { data, .. }
        | Frame::SimpleString { data, .. }
        | Frame::VerbatimString { data, .. } => Reply::Text(data),
        Frame::SimpleError { data, .. } => Reply::Error(data.to_string()),
        Frame::BlobError { data, .. } => Reply::Error(String::from_utf8_lossy(&data).into_owned()),
        Frame::Map { data, .. } => {
            let text = |frame: &Frame| match frame {
                Frame::BlobString { data, .. } | Frame::SimpleString { data, .. } => {
                    Some(String::from_utf8_lossy(data).into_owned())
                }
                Frame::Number { data, .. } => Some(data.to_string()),
                _ => None,
            };
            let fields = data
                .iter()
                .filter_map(|(name, value)| text(name).zip(text(value)));
            Reply::Fields(fields.collect())
        }
        _ => Reply::Other,
    }
}

fn of_resp2(frame: resp2::types::BytesFrame) -> Reply {
    use resp2::types::BytesFrame as Frame;
    match frame {
        Frame::Array(data) => {
            let texts = data.iter().map(|frame| match frame {
                Frame::BulkString(data) | Frame::SimpleString(data) => Some(data.clone()),
                _ => None,
            });
            let push = if data.len() == 3 {
                of_push(texts)
            } else {
                None
            };
            push.unwrap_or_else(|| Reply::List(data.into_iter().map(of_resp2).collect()))
        }
        Frame::Integer(number) => Reply::Number(number),
        Frame::BulkString(data) | Frame::SimpleString(data) => Reply::Text(data),
        Frame::Error(text) => Reply::Error(text.to_string()),
        Frame::Null => Reply::Nil,
    }
}

/// A push, or in RESP2 the array in its place: a kind, a channel, a payload.
fn of_push(mut texts: impl Iterator<Item = Option<Bytes>>) -> Option<Reply> {
    let kind = texts.next().flatten();
    match (kind.as_deref(), texts.next(), texts.next()) {
        (Some(b"message" | b"smessage"), Some(Some(channel)), Some(Some(payload))) => {
            Some(Reply::Message { channel, payload })
        }
        (Some(b"subscribe" | b"ssubscribe"), Some(Some(channel)), _) => {
            Some(Reply::Subscribed { channel })
        }
        (Some(b"unsubscribe" | b"sunsubscribe"), Some(channel), _) => {
            Some(Reply::Unsubscribed { channel })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(data: &str) -> Bytes {
        Bytes::copy_from_slice(data.as_bytes())
    }

    fn all(version: Version, bytes: &[u8]) -> Vec<Reply> {
        let mut decoder = Decoder::new(version);
        decoder.feed(bytes);
        let replies = std::iter::from_fn(|| decoder.next_reply().unwrap()).collect();
        assert_eq!(decoder.waiting(), b"");
        replies
    }

    const PUSHES: &[u8] = b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\na\r\nb\r\n\
        >3\r\n$11\r\nunsubscribe\r\n$1\r\nc\r\n:0\r\n:7\r\n+OK\r\n-NOPERM no\r\n%2\r\n$5\r\nproto\r\n:3\r\n$7\r\nmodules\r\n*0\r\n";

    fn pushed() -> Vec<Reply> {
        vec![
            Reply::Subscribed { channel: text("c") },
            Reply::Message {
                channel: text("c"),
                payload: text("a\r\nb"),
            },
            Reply::Unsubscribed {
                channel: Some(text("c")),
            },
            Reply::Number(7),
            Reply::Text(text("OK")),
            Reply::Error("NOPERM no".into()),
            Reply::Fields(vec![("proto".into(), "3".into())]),
        ]
    }

    #[test]
    fn what_redis_says_is_understood_in_both_versions() {
        assert_eq!(all(Version::Resp3, PUSHES), pushed());
        let older = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n\
            *3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n:7\r\n$2\r\nhi\r\n-ERR x\r\n";
        let expected = [
            Reply::Subscribed { channel: text("c") },
            Reply::Message {
                channel: text("c"),
                payload: text("x"),
            },
            Reply::Unsubscribed { channel: None },
            Reply::Number(7),
            Reply::Text(text("hi")),
            Reply::Error("ERR x".into()),
        ];
        assert_eq!(all(Version::Resp2, older), expected);
    }

    #[test]
    fn a_command_is_an_array_of_texts() {
        let mut out = BytesMut::new();
        encode_command(&mut out, &[b"PUBLISH", b"c", b"\r\n"]);
        assert_eq!(
            &out[..],
            b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$2\r\n\r\n\r\n"
        );
    }

    #[test]
    fn what_is_not_resp_is_told_and_kept_to_be_shown() {
        for version in [Version::Resp2, Version::Resp3] {
            let mut decoder = Decoder::new(version);
            decoder.feed(b"HTTP/1.1 400 Bad Request\r\n");
            assert_eq!(decoder.next_reply(), Err(NotResp));
            assert!(decoder.waiting().starts_with(b"HTTP/1.1"));
        }
    }

    proptest! {
        #[test]
        fn any_split_reads_alike(cuts in prop::collection::vec(0..PUSHES.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            cuts.push(PUSHES.len());
            let (mut decoder, mut replies, mut start) = (Decoder::new(Version::Resp3), Vec::new(), 0);
            for cut in cuts {
                decoder.feed(&PUSHES[start..cut]);
                start = cut;
                while let Some(reply) = decoder.next_reply().unwrap() {
                    replies.push(reply);
                }
            }
            prop_assert_eq!(replies, pushed());
        }

        #[test]
        fn nothing_that_comes_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for version in [Version::Resp2, Version::Resp3] {
                let mut decoder = Decoder::new(version);
                decoder.feed(&bytes);
                while let Ok(Some(_)) = decoder.next_reply() {}
            }
        }
    }
}
