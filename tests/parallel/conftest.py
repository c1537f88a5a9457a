"""Processes that work together, and a single one that thinks so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.conftest import ROOT
from tests.parallel import few_bits
from tests.tiny import save_model


def launch(processes: int, folder: Path, *parts: str, timeout: float = 240.0) -> dict[str, Any]:
    """The parts of `tests.parallel.together`, as so many processes find them."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={processes}", "-m", "tests.parallel.together", str(folder), *parts,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: json.loads((folder / f"{name}-{processes}.json").read_text()) for name in parts}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two random models of one tokenizer: `teacher` and `other`."""
    folder = tmp_path_factory.mktemp("parallel")
    for seed, name in enumerate(("teacher", "other"), 1):
        save_model(folder / name, width=32, layers=3, seed=seed, tie_word_embeddings=False)
    return folder


@pytest.fixture(scope="session")
def together(models: Path) -> dict[str, Any]:
    """Everything that two processes find out."""
    parts = ["equal", "sharded", "lora", "resumed", "weights_for_a_while"]
    if find_spec("bitsandbytes") is not None:
        few_bits.wide(models)
        parts.append("few_bits")
    return launch(2, models, *parts)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch):
    """A process group of this process alone, gone afterwards."""
    before = dict(os.environ)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    for name in set(os.environ) - set(before):
        del os.environ[name]
