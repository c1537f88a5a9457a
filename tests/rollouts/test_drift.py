"""On-policy, a student learns to recover from its own mistakes; from clean text it does not."""

from __future__ import annotations

import pytest

from benchmarks import drift


@pytest.mark.slow
def test_recovery_after_a_forced_error():
    found = {
        name: [drift.run(drift.ARMS[name], seed)["reset"] for seed in range(3)]
        for name in (
            "on-policy reverse KL",
            "off-policy forward KL",
            "on-policy reverse KL, shuffled teacher",
        )
    }
    own, given, shuffled = found.values()
    assert min(own) >= 0.95
    assert max(given) <= 0.10
    assert max(shuffled) <= 0.60
