//! Which pages may connect (RFC 6455 §10.2): a list of patterns against the `Origin` header.

use super::Refusal;
use super::request::Once;
use crate::metrics::RefusalKind;

/// Refuses an `Origin` that is there and not allowed. An empty list allows any.
///
/// # Errors
/// - `OriginForbidden`: no pattern matches it.
/// - `BadRequest`: there are several.
pub(super) fn check_origin(origin: Once<'_>, allowed: &[String]) -> Result<(), Refusal> {
    match origin {
        Once::Repeated => Err(Refusal::bad("more than one Origin")),
        Once::Given(origin)
            if !allowed.is_empty()
                && !allowed
                    .iter()
                    .any(|pattern| origin_matches(pattern.as_bytes(), origin)) =>
        {
            Err(Refusal::of(RefusalKind::OriginForbidden))
        }
        Once::Absent | Once::Given(_) => Ok(()),
    }
}

/// Whether `origin` is as `pattern` has it, whatever the case; each `*` stands for one or more characters.
///
/// Goes back to the last `*` only, so its cost is at most the product of both lengths.
fn origin_matches(pattern: &[u8], origin: &[u8]) -> bool {
    let (mut pattern_at, mut origin_at) = (0, 0);
    // The pattern behind the last `*` seen, and how far that `*` reaches.
    let mut star: Option<(usize, usize)> = None;
    while origin_at < origin.len() {
        match pattern.get(pattern_at) {
            Some(b'*') => {
                pattern_at += 1;
                origin_at += 1;
                star = Some((pattern_at, origin_at));
            }
            Some(byte) if byte.eq_ignore_ascii_case(&origin[origin_at]) => {
                pattern_at += 1;
                origin_at += 1;
            }
            _ => match star {
                Some((behind, reach)) => {
                    (pattern_at, origin_at) = (behind, reach + 1);
                    star = Some((behind, reach + 1));
                }
                None => return false,
            },
        }
    }
    pattern_at == pattern.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_is_one_or_more_characters_and_case_does_not_count() {
        let allowed = ["https://*.example".to_owned(), "null".to_owned()];
        for origin in ["https://a.example", "HTTPS://b.c.EXAMPLE", "null"] {
            assert_eq!(
                check_origin(Once::Given(origin.as_bytes()), &allowed),
                Ok(()),
                "{origin}"
            );
        }
        for origin in [
            "",
            "https://.example",
            "https://example",
            "http://a.example",
            "https://a.example.org",
            "nul",
        ] {
            let refusal = check_origin(Once::Given(origin.as_bytes()), &allowed).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::OriginForbidden, "{origin}");
        }
    }

    #[test]
    fn without_a_list_any_passes_and_without_an_origin_so_does_the_client() {
        assert_eq!(check_origin(Once::Given(b"https://any.where"), &[]), Ok(()));
        assert_eq!(check_origin(Once::Absent, &["null".to_owned()]), Ok(()));
        assert_eq!(
            check_origin(Once::Repeated, &[]).unwrap_err().kind,
            RefusalKind::BadRequest
        );
    }

    #[test]
    fn a_pattern_of_many_stars_is_judged_in_bounded_time() {
        let pattern = "*a".repeat(200);
        let origin = "a".repeat(4_000) + "b";
        assert!(!origin_matches(pattern.as_bytes(), origin.as_bytes()));
    }

    proptest! {
        #[test]
        fn patterns_match_like_the_plain_recursion(pattern in "[ab*]{0,7}", origin in "[ab]{0,9}") {
            fn plain(pattern: &[u8], origin: &[u8]) -> bool {
                match (pattern, origin) {
                    ([], _) => origin.is_empty(),
                    ([b'*', rest @ ..], _) => (1..=origin.len()).any(|taken| plain(rest, &origin[taken..])),
                    ([a, rest @ ..], [b, behind @ ..]) => a == b && plain(rest, behind),
                    _ => false,
                }
            }
            let expected = plain(pattern.as_bytes(), origin.as_bytes());
            prop_assert_eq!(origin_matches(pattern.as_bytes(), origin.as_bytes()), expected);
        }
    }
}
