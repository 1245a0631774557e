//! The least of WebSocket that a bare loop can speak: the upgrade answer, and a frame turned around in place.

use tungstenite::handshake::derive_accept_key;

/// Answers the request at the front of `request` into `answer`. `None`: its head is not complete, or has no key.
///
/// Returns the bytes of the head. Nothing of it is checked, but the accept key is computed as every server must.
pub fn answer_upgrade(request: &[u8], answer: &mut Vec<u8>) -> Option<usize> {
    let head_bytes = request.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let key = request[..head_bytes]
        .split(|byte| *byte == b'\n')
        .find_map(|line| {
            let (name, value) = line.split_at_checked(18)?;
            name.eq_ignore_ascii_case(b"sec-websocket-key:")
                .then(|| value.trim_ascii())
        })?;
    answer.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    );
    answer.extend_from_slice(b"Sec-WebSocket-Accept: ");
    answer.extend_from_slice(derive_accept_key(key).as_bytes());
    answer.extend_from_slice(b"\r\n\r\n");
    Some(head_bytes)
}

/// What [`turn_around`] made of the bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Turned {
    /// Bytes at the front that are whole server frames now.
    pub answer_bytes: usize,
    /// Bytes that were whole client frames; what is behind them is the beginning of one.
    pub taken_bytes: usize,
    /// A control frame, or no client frame at all, came behind these: the connection ends.
    pub ended: bool,
}

/// Turns the whole client frames at the front of `bytes` into server frames with the same payloads, in place.
pub fn turn_around(bytes: &mut [u8]) -> Turned {
    let mut turned = Turned {
        answer_bytes: 0,
        taken_bytes: 0,
        ended: false,
    };
    while let Some(rest) = bytes
        .get(turned.taken_bytes..)
        .filter(|rest| rest.len() >= 2)
    {
        if rest[0] & 0x08 != 0 || rest[1] & 0x80 == 0 {
            turned.ended = true;
            break;
        }
        let first = rest[0];
        let (payload_bytes, length_bytes) = match rest[1] & 0x7f {
            126 if rest.len() >= 4 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 2),
            126 => break,
            127 => {
                turned.ended = true; // no bare loop is fed frames of 64 KiB
                break;
            }
            short => (usize::from(short), 0),
        };
        let header_bytes = 2 + length_bytes + 4;
        let Some(mask) = rest.get(2 + length_bytes..header_bytes) else {
            break;
        };
        let mask = [mask[0], mask[1], mask[2], mask[3]];
        if rest.len() < header_bytes + payload_bytes {
            break;
        }
        let read = turned.taken_bytes;
        let write = turned.answer_bytes;
        bytes[write] = first;
        if length_bytes == 2 {
            bytes[write + 1] = 126;
            bytes.copy_within(read + 2..read + 4, write + 2);
        } else {
            bytes[write + 1] = payload_bytes as u8; // below 126
        }
        let write_payload = write + 2 + length_bytes;
        bytes.copy_within(
            read + header_bytes..read + header_bytes + payload_bytes,
            write_payload,
        );
        unmask(
            &mut bytes[write_payload..write_payload + payload_bytes],
            mask,
        );
        turned.answer_bytes = write_payload + payload_bytes;
        turned.taken_bytes = read + header_bytes + payload_bytes;
    }
    turned
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let half = u64::from(u32::from_ne_bytes(mask));
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ (half << 32 | half)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// Writes a binary server frame of `payload_bytes` into `frame` and returns its header's length.
pub fn start_frame(frame: &mut Vec<u8>, payload_bytes: u16) -> usize {
    frame.clear();
    frame.push(0x82);
    if payload_bytes < 126 {
        frame.push(payload_bytes as u8);
    } else {
        frame.push(126);
        frame.extend_from_slice(&payload_bytes.to_be_bytes());
    }
    let header_bytes = frame.len();
    frame.resize(header_bytes + usize::from(payload_bytes), 0);
    header_bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_frame(payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0x82];
        if payload.len() < 126 {
            frame.push(0x80 | payload.len() as u8);
        } else {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        }
        frame.extend_from_slice(&mask);
        frame.extend(
            payload
                .iter()
                .enumerate()
                .map(|(index, byte)| byte ^ mask[index % 4]),
        );
        frame
    }

    #[test]
    fn the_key_of_the_rfc_gets_its_answer() {
        let request =
            b"GET / HTTP/1.1\r\nHost: x\r\nsec-websocket-KEY: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nmore";
        let mut answer = Vec::new();
        assert_eq!(
            answer_upgrade(request, &mut answer),
            Some(request.len() - 4)
        );
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "{answer}"
        );
        assert_eq!(answer_upgrade(&request[..40], &mut Vec::new()), None);
    }

    #[test]
    fn frames_come_back_unmasked_and_a_beginning_stays() {
        for size in [0, 1, 7, 64, 125, 126, 1000] {
            let payload: Vec<u8> = (0..size).map(|index| index as u8).collect();
            let mut bytes = client_frame(&payload, [1, 2, 3, 4]);
            bytes.extend(client_frame(&payload, [9, 8, 7, 6]));
            let taken_bytes = bytes.len();
            bytes.extend(&client_frame(b"beginning", [5; 4])[..9]);
            let mut expected = Vec::new();
            let header_bytes = start_frame(&mut expected, size);
            expected[header_bytes..].copy_from_slice(&payload);
            let one = expected.clone();
            expected.extend(one);
            let turned = turn_around(&mut bytes);
            assert_eq!(
                turned,
                Turned {
                    answer_bytes: expected.len(),
                    taken_bytes,
                    ended: false
                }
            );
            assert_eq!(&bytes[..turned.answer_bytes], &expected);
        }
    }

    #[test]
    fn a_close_frame_ends_it() {
        let mut bytes = client_frame(b"x", [0; 4]);
        bytes.extend([0x88, 0x80, 0, 0, 0, 0]);
        assert_eq!(
            turn_around(&mut bytes),
            Turned {
                answer_bytes: 3,
                taken_bytes: 7,
                ended: true
            }
        );
    }
}
