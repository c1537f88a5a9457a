"""What every test leans on: one thread, no hub, tiny models, the shared folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from tests.tiny import save_model, tokenizer

torch.set_num_threads(1)
logging.raiseExceptions = False  # loggers keep the standard error of an earlier test

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_seed_of_another_test():
    """A seed that a run leaves in the environment would be taken by the next test's processes."""
    os.environ.pop("PL_GLOBAL_SEED", None)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the project."""
    folder = Path(os.environ.get("KD_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data: KD_SHARED names no folder ({folder})")
    return folder.resolve()


@pytest.fixture(scope="session")
def stories(shared: Path) -> str:
    """The tiny pretrained teacher."""
    return str(shared / "models" / "stories260k")


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved random model of two layers with a character tokenizer."""
    folder = tmp_path_factory.mktemp("teacher")
    save_model(folder, width=32, layers=3, seed=1)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A tokenizer of single characters."""
    return tokenizer()
