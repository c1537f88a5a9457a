"""No native code is fetched, also where the package that would fetch it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FETCHES = """
import os
from pathlib import Path

class Anything:
    def __init__(self, *a, **k): pass
    def __getattr__(self, name): return Anything()
    def __call__(self, *a, **k): return Anything()

def get_kernel(name, *a, **k):
    with open(os.environ["MARK"], "a") as file:
        file.write(name + "\\n")
    raise RuntimeError("fetched")

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything
"""


@pytest.fixture
def fetched(tmp_path):
    """Runs a program beside a package `kernels`; what that was asked to fetch."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text(FETCHES)
    told = tmp_path / "kernels-0.18.2.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")

    def run(program: str) -> list[str]:
        mark = tmp_path / "mark"
        mark.unlink(missing_ok=True)
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        env = {**os.environ, "PYTHONPATH": path, "MARK": str(mark), "OMP_NUM_THREADS": "1"}
        env.pop("USE_HUB_KERNELS", None)
        done = subprocess.run(
            [sys.executable, "-c", program], env=env, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return Path(mark).read_text().split() if mark.exists() else []

    return run


ADAPTERS = """
from kd_lightning.models.causal import build_student
from kd_lightning.models.spec import LoraSpec, StudentSpec
from tests.tiny import config, tokenizer
build_student(StudentSpec(config=config(), lora=LoraSpec(rank=2)), tokenizer())
import sys
assert "bitsandbytes" in sys.modules  # by peft
import kernels  # there again for whoever asked for it
assert kernels.get_kernel
"""

LAYERS = """
{first}
from transformers.integrations.hub_kernels import lazy_load_kernel
try:
    lazy_load_kernel("finegrained-fp8")
except RuntimeError:
    pass
"""


def test_bitsandbytes_fetches_none_beside_adapters(fetched):
    pytest.importorskip("bitsandbytes")
    assert fetched(ADAPTERS) == []


@pytest.mark.slow
def test_layers_of_transformers_fetch_none(fetched):
    assert fetched(LAYERS.format(first="import kd_lightning")) == []


@pytest.mark.slow
def test_both_would_without_us(fetched):
    """The control."""
    assert fetched(LAYERS.format(first="")) == ["kernels-community/finegrained-fp8"]
    functional = pytest.importorskip("bitsandbytes.functional")
    if functional.has_avx512bf16():
        assert fetched("import bitsandbytes") == ["kernels-community/quantization-bitsandbytes"]
