"""The script in docs/ says what the command line understands."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml

from kd_lightning.cli import main
from tests.conftest import ROOT


def test_the_batch_script_starts_a_sharded_run(tmp_path, capsys):
    stub = tmp_path / "srun"
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NNODES": "4",
        "SLURM_NTASKS_PER_NODE": "8",
    }
    script = ["bash", "docs/kd.sbatch", "configs/experiment/demo.yaml", str(tmp_path / "run")]
    done = subprocess.run(script, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    words = words[words.index("train.py") + 1 :]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--print_config"])
    assert stop.value.code == 0
    trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert trainer["num_nodes"] == 4 and int(trainer["devices"]) == 8
    assert trainer["strategy"]["init_args"]["replicas"] == 4
    assert trainer["strategy"]["class_path"] == "kd_lightning.parallel.strategy.KDStrategy"

    done = subprocess.run(["bash", "docs/kd.sbatch"], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode != 0 and b"usage: sbatch" in done.stderr
