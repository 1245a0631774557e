//! What the 101 says of the node: a header with its name, and a cookie by which a balancer brings the client back.

use super::request::ParsedRequest;
use crate::limits::UPGRADE_LINES_BYTES_MAX;

/// The affinity cookie (RFC 6265 §4.1). It is always `HttpOnly`: no script has a use for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Its name: a token.
    pub name: String,
    /// Its value, which a balancer knows the node by: of `cookie-octet`.
    pub value: String,
    /// `Path`.
    pub path: String,
    /// `Domain`; without one it is for the host that set it only.
    pub domain: Option<String>,
    /// `Max-Age` in seconds; 0: as long as the browser runs.
    pub max_age_s: u32,
    /// `SameSite`.
    pub same_site: SameSite,
    /// `Secure`: over TLS only.
    pub secure: bool,
}

/// When a browser sends a cookie from pages of other sites (draft-ietf-httpbis-rfc6265bis §4.1.2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    /// Not with a page's own requests. A WebSocket of another site's page is one.
    Lax,
    /// Never.
    Strict,
    /// Always; browsers take it with `Secure` only.
    None,
}

impl SameSite {
    /// As it stands in the header.
    const fn label(self) -> &'static str {
        match self {
            Self::Lax => "Lax",
            Self::Strict => "Strict",
            Self::None => "None",
        }
    }
}

/// The 101's lines about the node, made once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Badge {
    /// For who has the cookie already.
    known: String,
    /// For who has not.
    new: String,
    /// `name=`, and the value.
    cookie: Option<(String, String)>,
}

impl Badge {
    /// `header`: the node header's name and the node's. `cookie`: what comes with it.
    #[must_use]
    pub fn new(header: Option<(&str, &str)>, cookie: Option<&Cookie>) -> Self {
        let known = header.map_or_else(String::new, |(name, node)| format!("{name}: {node}\r\n"));
        let new = match cookie {
            Some(cookie) => format!("{known}Set-Cookie: {}\r\n", set_cookie(cookie)),
            None => known.clone(),
        };
        debug_assert!(new.len() <= UPGRADE_LINES_BYTES_MAX);
        Self {
            known,
            new,
            cookie: cookie.map(|cookie| (format!("{}=", cookie.name), cookie.value.clone())),
        }
    }

    /// Whether `request` has the cookie with this node's value, and with no other.
    pub(super) fn is_known(&self, request: &ParsedRequest<'_>) -> bool {
        let Some((name, value)) = &self.cookie else {
            return false;
        };
        let mut values = request
            .values("Cookie")
            .flat_map(|pairs| pairs.split(|&byte| byte == b';'))
            .filter_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes()))
            .peekable();
        values.peek().is_some() && values.all(|found| found == value.as_bytes())
    }

    /// The lines for who is `known`, each with its CRLF.
    #[must_use]
    pub fn lines(&self, known: bool) -> &[u8] {
        if known { &self.known } else { &self.new }.as_bytes()
    }
}

fn set_cookie(cookie: &Cookie) -> String {
    let mut text = format!("{}={}; Path={}", cookie.name, cookie.value, cookie.path);
    if let Some(domain) = &cookie.domain {
        text.push_str("; Domain=");
        text.push_str(domain);
    }
    if cookie.max_age_s > 0 {
        text.push_str("; Max-Age=");
        text.push_str(&cookie.max_age_s.to_string());
    }
    text.push_str("; SameSite=");
    text.push_str(cookie.same_site.label());
    if cookie.secure {
        text.push_str("; Secure");
    }
    text.push_str("; HttpOnly");
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Edge, Options, parse_request};
    use super::*;

    fn cookie() -> Cookie {
        Cookie {
            name: "throng_node".into(),
            value: "a".into(),
            path: "/".into(),
            domain: None,
            max_age_s: 0,
            same_site: SameSite::Lax,
            secure: false,
        }
    }

    fn is_known(badge: &Badge, headers: &str) -> bool {
        let options = Options {
            bytes_max: 8_192,
            header_count_max: 64,
            origins: Vec::new(),
            edge: Edge::default(),
        };
        let bytes = format!("GET / HTTP/1.1\r\n{headers}\r\n");
        badge.is_known(&parse_request(bytes.as_bytes(), &options).unwrap().unwrap())
    }

    fn text(lines: &[u8]) -> &str {
        std::str::from_utf8(lines).unwrap()
    }

    #[test]
    fn the_cookie_has_the_attributes_that_were_asked_for() {
        let badge = Badge::new(Some(("X-Throng-Node", "a-1")), Some(&cookie()));
        assert_eq!(text(badge.lines(true)), "X-Throng-Node: a-1\r\n");
        assert_eq!(
            text(badge.lines(false)),
            "X-Throng-Node: a-1\r\nSet-Cookie: throng_node=a; Path=/; SameSite=Lax; HttpOnly\r\n"
        );
        let all = Cookie {
            domain: Some("example.org".into()),
            max_age_s: 3_600,
            same_site: SameSite::None,
            secure: true,
            ..cookie()
        };
        assert_eq!(
            text(Badge::new(None, Some(&all)).lines(false)),
            "Set-Cookie: throng_node=a; Path=/; Domain=example.org; Max-Age=3600; SameSite=None; Secure; HttpOnly\r\n"
        );
    }

    #[test]
    fn who_comes_with_this_nodes_cookie_is_known() {
        let badge = Badge::new(None, Some(&cookie()));
        for headers in [
            "Cookie: throng_node=a\r\n",
            "cookie: x=1;throng_node=a ; y=throng_node=b\r\n",
            "Cookie: x=1\r\nCookie: throng_node=a\r\n",
        ] {
            assert!(is_known(&badge, headers), "{headers}");
        }
        for headers in [
            "",
            "Cookie: throng_node=b\r\n",
            "Cookie: throng_node=aa\r\n",
            "Cookie: throng_node\r\n",
            "Cookie: Throng_node=a\r\n",
            "Cookie: xthrong_node=a\r\n",
            "Cookie: throng_node=a; throng_node=b\r\n",
            "Set-Cookie: throng_node=a\r\n",
        ] {
            assert!(!is_known(&badge, headers), "{headers}");
        }
    }

    #[test]
    fn without_settings_there_are_no_lines() {
        for badge in [Badge::default(), Badge::new(None, None)] {
            assert!(badge.lines(true).is_empty() && badge.lines(false).is_empty());
            assert!(!is_known(&badge, "Cookie: throng_node=a\r\n"));
        }
    }
}
