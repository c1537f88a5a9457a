"""On-policy steps: however they are split and over however many ranks, and after a resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.rollouts import runs


@pytest.mark.parametrize("case", runs.CASES)
def test_micro_batches_do_not_change_the_steps(case, tiny_teacher, tmp_path):
    whole = runs.run(tiny_teacher, tmp_path, case)
    assert max(whole["norms"]) > 1e-3
    for how in ({"micro_batch_rows": 3}, {"micro_batch_tokens": 60}):
        split = runs.run(tiny_teacher, tmp_path, case, **how)
        assert split["said"] == whole["said"]
        assert split["losses"] == pytest.approx(whole["losses"], abs=1e-5)
        assert split["norms"] == pytest.approx(whole["norms"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_say_and_learn_what_one_does(tiny_teacher, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "tests.rollouts.runs", tiny_teacher, str(tmp_path),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in (0, 1)]
    for name in ranks[0]:
        alone = runs.run(tiny_teacher, tmp_path, name.removesuffix("-fsdp"))
        expected = json.loads(json.dumps(alone["said"]))
        for step, mine, other in zip(expected, *(r[name]["said"] for r in ranks), strict=True):
            spoken = {}
            for each in (mine, other):
                for row, answers in each.items():
                    spoken.setdefault(row, []).extend(answers)
            spoken.pop("", None)
            assert spoken == step, name
        for rank in ranks:
            assert rank[name]["losses"] == pytest.approx(alone["losses"], abs=1e-5), name
            assert rank[name]["norms"] == pytest.approx(alone["norms"], rel=1e-3), name
