"""One process that forks the runs which are killed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from kd_lightning.rewards.head import write_head
from tests.faults.parts import trace
from tests.faults.victim import Victims


@pytest.fixture(scope="session")
def victims(tmp_path_factory):
    made = Victims(tmp_path_factory.mktemp("victims") / "log.txt")
    yield made
    made.close()


@pytest.fixture(scope="session")
def tiny_teacher(tiny_teacher, tmp_path_factory):
    """The same with a reward model's head beside its weights: it can teach, and judge."""
    folder = tmp_path_factory.mktemp("judge") / "model"
    shutil.copytree(tiny_teacher, folder)
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    write_head(folder, torch.randn(width, generator=torch.Generator().manual_seed(2)))
    return str(folder)


@pytest.fixture(scope="session")
def undisturbed(victims, tmp_path_factory, tiny_teacher):
    """Trace and final weights of the run that nothing happens to, by variant; made once."""
    known = {}

    def get(variant: str = "kl", **job):
        key = (variant, *sorted(job.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp(variant) / "run"
            code = victims.run(folder, variant=variant, teacher=tiny_teacher, **job)
            assert code == 0, (folder / "said.txt").read_text()[-3000:]
            known[key] = trace(folder), json.loads((folder / "final.json").read_text())
        return known[key]

    return get


@pytest.fixture
def same(undisturbed):
    """Asserts that a run which was disturbed is the undisturbed one, bit for bit."""

    def check(folder, variant: str = "kl", **job):
        expected, final = undisturbed(variant, **job)
        assert trace(folder) == expected, "other rows or losses"
        assert json.loads((folder / "final.json").read_text()) == final, "other weights"

    return check
