//! Room rules and origins: what they may look like, and rules that can never count.

use crate::config::mistake::Mistake;
use crate::limits::ROOM_NAME_BYTES_MAX;
use crate::metrics::DropPolicy;
use crate::shard::RoomRule;

/// Room rules in a file at most: every upgrade looks through them.
pub const ROOM_RULE_COUNT_MAX: usize = 256;

/// A rule and the line of the file where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RuleAt {
    pub(super) line: usize,
    pub(super) rule: RoomRule,
}

/// Why `pattern` is none, and what to write instead.
pub(super) fn pattern_mistake(pattern: &str) -> Option<(String, String)> {
    let name = pattern.strip_suffix('*').unwrap_or(pattern);
    let says =
        |problem: &str, instead: String| Some((format!("match = {pattern:?}: {problem}"), instead));
    if pattern.is_empty() {
        return says(
            "no room has an empty name",
            "write a room's name, or \"*\" for all".into(),
        );
    }
    if let Some(star) = name.find('*') {
        let instead = format!("write {:?}", format!("{}*", &name[..star]));
        return says("`*` may stand at the end only", instead);
    }
    if name.len() > ROOM_NAME_BYTES_MAX {
        let instead = format!("write at most {ROOM_NAME_BYTES_MAX} bytes before the `*`");
        return says("no room has so long a name", instead);
    }
    if name.chars().any(char::is_control) {
        return says(
            "no room's name has control characters",
            "leave them out".into(),
        );
    }
    None
}

/// The policy of that name.
pub(super) fn policy(label: &str) -> Option<DropPolicy> {
    DropPolicy::ALL
        .into_iter()
        .find(|policy| policy.label() == label)
}

/// The rules that can never count, because an earlier one matches all that they match.
pub(super) fn shadowed(rules: &[RuleAt], file: &str) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (index, late) in rules.iter().enumerate() {
        let early = rules[..index]
            .iter()
            .find(|early| covers(&early.rule.pattern, &late.rule.pattern));
        let Some(early) = early else { continue };
        let (early_line, late_pattern) = (early.line, &late.rule.pattern);
        let (problem, instead) = if early.rule.pattern == *late_pattern {
            (
                format!("match = {late_pattern:?} stands in line {early_line} already"),
                "leave one of the two out".into(),
            )
        } else {
            let early_pattern = &early.rule.pattern;
            (
                format!(
                    "match = {late_pattern:?} never counts: {early_pattern:?} in line {early_line} matches all of it first"
                ),
                format!("put it before line {early_line}, or leave it out"),
            )
        };
        mistakes.push(Mistake {
            place: format!("{file}:{}", late.line),
            problem,
            instead,
        });
    }
    mistakes
}

/// Whether every name that `late` matches is matched by `early`, too.
fn covers(early: &str, late: &str) -> bool {
    match early.strip_suffix('*') {
        Some(beginning) => late
            .strip_suffix('*')
            .unwrap_or(late)
            .starts_with(beginning),
        None => early == late,
    }
}

/// Whether `origin` may stand in the list of origins (RFC 6454 §6.2: scheme, host and port, nothing behind them).
pub(super) fn origin_is_allowed(origin: &str) -> bool {
    if matches!(origin, "*" | "null") {
        return true;
    }
    let Some((scheme, host)) = origin.split_once("://") else {
        return false;
    };
    let visible = origin.bytes().all(|byte| byte.is_ascii_graphic());
    visible && !scheme.is_empty() && !host.is_empty() && !host.contains(['/', '?', '#', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(patterns: &[&str]) -> Vec<RuleAt> {
        let rule = |(index, pattern): (usize, &&str)| RuleAt {
            line: 10 * (index + 1),
            rule: RoomRule {
                pattern: (*pattern).into(),
                slow: DropPolicy::Latest,
            },
        };
        patterns.iter().enumerate().map(rule).collect()
    }

    #[test]
    fn a_star_stands_at_the_end_only() {
        for pattern in ["*", "ticker:*", "ticker:eur", "ä*"] {
            assert_eq!(pattern_mistake(pattern), None, "{pattern}");
        }
        let (_, instead) = pattern_mistake("a*b*").unwrap();
        assert_eq!(instead, "write \"a*\"");
        assert!(pattern_mistake("").is_some());
        assert!(pattern_mistake("a\u{7}*").is_some());
        assert_eq!(pattern_mistake(&format!("{}*", "x".repeat(255))), None);
        assert!(pattern_mistake(&"x".repeat(256)).is_some());
    }

    #[test]
    fn rules_that_never_count_are_found() {
        assert_eq!(shadowed(&rules(&["a:b:*", "a:*", "a:*x"]), "f").len(), 1);
        assert_eq!(shadowed(&rules(&["a", "ab", "a*"]), "f"), []);
        let mistakes = shadowed(&rules(&["*", "a", "*"]), "f");
        assert_eq!(mistakes.len(), 2);
        assert_eq!(mistakes[0].place, "f:20");
        assert!(mistakes[0].instead.contains("before line 10"));
        assert!(mistakes[1].problem.contains("already"));
    }

    #[test]
    fn an_origin_has_a_scheme_and_nothing_behind_the_port() {
        for origin in [
            "https://example.org",
            "http://localhost:3000",
            "https://*.example.org",
            "*",
            "null",
        ] {
            assert!(origin_is_allowed(origin), "{origin}");
        }
        for origin in [
            "",
            "example.org",
            "https://example.org/",
            "https://",
            "://x",
            "https://a.org?x",
            "https://a b",
        ] {
            assert!(!origin_is_allowed(origin), "{origin}");
        }
    }
}
