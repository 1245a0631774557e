"""Checks that every dependency may be shipped: `cargo metadata` on standard input, one finding a line.

A package passes when one alternative of its licence expression is made of allowed licences only.
"""

import json
import re
import sys

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "MPL-2.0+",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}


def allowed(expression):
    """Whether an SPDX expression (AND, OR, brackets; `/` is an old OR) can be met by allowed licences."""
    tokens = re.findall(r"\(|\)|[^\s()]+(?: WITH [^\s()]+)?", expression.replace("/", " OR "))

    def alternatives(at):
        met, at = parts(at)
        while at < len(tokens) and tokens[at] == "OR":
            other, at = parts(at + 1)
            met = met or other
        return met, at

    def parts(at):
        met, at = one(at)
        while at < len(tokens) and tokens[at] == "AND":
            other, at = one(at + 1)
            met = met and other
        return met, at

    def one(at):
        if tokens[at] == "(":
            met, at = alternatives(at + 1)
            return met, at + 1
        return tokens[at] in ALLOWED, at + 1

    return alternatives(0)[0]


assert allowed("MIT OR Apache-2.0") and allowed("MIT/Apache-2.0") and allowed("(MIT OR GPL-3.0) AND ISC")
assert not allowed("GPL-3.0") and not allowed("MIT AND GPL-3.0") and not allowed("(GPL-2.0 OR LGPL-2.1)")

packages = json.load(sys.stdin)["packages"]
findings = [
    f"{package['name']} {package['version']}: {package['license'] or 'no licence'}"
    for package in packages
    if not (package["license"] and allowed(package["license"]))
]
print("\n".join(findings) if findings else f"{len(packages)} packages, all with licences that may be shipped")
sys.exit(bool(findings))
