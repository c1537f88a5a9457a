"""What is installed: bounds that leave known bad releases out, and one exact set."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = [Requirement(t) for texts in PROJECT["optional-dependencies"].values() for t in texts]
LINES = [
    line.strip()
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
PINS = {canonicalize_name(name): version for name, _, version in (x.partition("==") for x in LINES)}

BAD = [
    ("lightning", "2.6.2", "malicious release of 2026-04-30"),
    ("lightning", "2.6.3", "malicious release of 2026-04-30"),
    ("lightning", "2.6.0", "CVE-2026-31221: load_from_checkpoint runs code"),
    ("lightning", "2.4.0", "VU#252619: unpickles checkpoints"),
    ("torch", "2.5.1", "CVE-2025-32434: weights_only=True runs code"),
    ("torch", "2.9.1", "CVE-2026-24747: the restricted unpickler corrupts memory"),
    ("transformers", "5.2.0", "CVE-2026-4372, CVE-2026-5241: a model's config runs code"),
    ("transformers", "4.57.0", "CVE-2026-1839: rng_state.pth is unpickled"),
    ("datasets", "3.6.0", "data sets with scripts"),
    ("nltk", "3.8.1", "CVE-2024-39705: pickled data files"),
]
APART = {"flash-attn", "vllm"}
"""Extras that no test installs: a source build, and an engine that brings its own torch."""
NEVER = {"litellm": "malicious releases 1.82.7 and 1.82.8 of 2026-03-24"}


@pytest.mark.parametrize(("name", "version", "why"), BAD, ids=lambda x: str(x)[:20])
def test_a_known_bad_release_is_never_installed(name, version, why):
    (bound,) = [r for r in NEEDED if r.name == name]
    assert not bound.specifier.contains(version, prereleases=True), why
    assert Version(PINS[name]) > Version(version)


def test_what_is_never_needed():
    named = {canonicalize_name(r.name) for r in (*NEEDED, *EXTRAS)} | set(PINS)
    assert not named & set(NEVER)


def test_every_need_has_bounds_and_a_pin_within_them():
    assert len(NEEDED) > 10
    for need in NEEDED:
        kinds = {s.operator for s in need.specifier}
        assert ">=" in kinds and "<" in kinds, f"{need.name} is not bounded on both sides"
    for need in (*NEEDED, *EXTRAS):
        assert need.url is None, f"{need.name} is taken from an address"
        if need.name in APART:
            continue
        assert need.specifier.contains(PINS[canonicalize_name(need.name)]), need.name


def test_pins_are_exact_and_nothing_but_pins():
    assert len(PINS) == len(LINES) > 100
    assert all(re.fullmatch(r"[\w.-]+==[\w.!+]+", line) for line in LINES), LINES
