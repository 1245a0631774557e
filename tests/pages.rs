//! Whether the pages hold together: every relative link leads to a file that is there, and to a heading of that name, and
//! every page of `docs/` is linked from README.md.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where pages are looked for, without their subdirectories.
const DIRECTORIES: [&str; 4] = ["", "docs", "docs/million", "loadtest"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for directory in DIRECTORIES {
        let entries = fs::read_dir(repository().join(directory)).expect("a directory");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        pages.extend(paths.filter(|path| path.extension().is_some_and(|have| have == "md")));
    }
    pages.sort();
    pages
}

/// The lines of a page that are not in a fenced block.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// What a page links to, as it is written: what stands between `](` and `)`.
fn links(text: &str) -> Vec<&str> {
    let after_brackets = |line| str::split(line, "](").skip(1);
    prose(text)
        .flat_map(after_brackets)
        .filter_map(|rest| rest.split_once(')').map(|(link, _)| link))
        .collect()
}

/// The names by which a page's headings are linked to: small letters, `-` for a space, no other signs; a second heading
/// of the same words gets `-1`.
fn anchors(text: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    let headings = prose(text).filter_map(|line| {
        let words = line.trim_start_matches('#');
        (words.len() < line.len() && words.starts_with(' ')).then_some(words.trim())
    });
    for heading in headings {
        let name: String = heading
            .to_lowercase()
            .chars()
            .filter(|&sign| sign.is_alphanumeric() || "-_ ".contains(sign))
            .map(|sign| if sign == ' ' { '-' } else { sign })
            .collect();
        let mut free = name.clone();
        for number in 1.. {
            if anchors.insert(free) {
                break;
            }
            free = format!("{name}-{number}");
        }
    }
    anchors
}

/// What is wrong with a link of the page at `page`; `None`: nothing.
fn mistake(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") {
        return None;
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match file {
        "" => page.to_owned(),
        file => page.parent().expect("it is in a directory").join(file),
    };
    if !target.exists() {
        return Some(format!("{}: {link}: no such file", page.display()));
    }
    if anchor.is_empty() {
        return None;
    }
    let known = fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor));
    (!known).then(|| format!("{}: {link}: no such heading", page.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let mut mistakes = Vec::new();
    let mut link_count = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page is text");
        for link in links(&text) {
            link_count += 1;
            mistakes.extend(mistake(&page, link));
        }
    }
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
    assert!(link_count > 50, "only {link_count} links were found");
}

#[test]
fn every_page_of_docs_is_linked_from_the_readme() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("a page is text");
    let linked = links(&readme);
    for page in pages() {
        let name = page.strip_prefix(repository()).expect("it is below");
        if name.parent() == Some(Path::new("docs")) {
            let name = name.to_string_lossy();
            assert!(linked.contains(&name.as_ref()), "{name} is not linked");
        }
    }
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = repository().join("docs/TESTING.md");
    for (link, wrong) in [
        ("https://example.org/nowhere", None),
        ("../README.md", None),
        ("#layers", None),
        ("../loadtest/README.md#several-targets", None),
        ("nowhere.md", Some("no such file")),
        ("#nowhere", Some("no such heading")),
        (
            "../loadtest/README.md#Several-Targets",
            Some("no such heading"),
        ),
    ] {
        let found = mistake(&page, link);
        assert_eq!(found.is_some(), wrong.is_some(), "{link}: {found:?}");
        assert!(found.unwrap_or_default().ends_with(wrong.unwrap_or("")));
    }
}

#[test]
fn links_and_headings_are_read_as_they_are_shown() {
    let text = "# One, `two` & three\n[a](b.md#c) and ![d](e.svg)\n```\n# no heading\n[no](link)\n```\n## Again\n## Again\n#no\n";
    assert_eq!(links(text), ["b.md#c", "e.svg"]);
    let expected = ["one-two--three", "again", "again-1"].map(String::from);
    assert_eq!(anchors(text), HashSet::from(expected));
}
