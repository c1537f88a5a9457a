"""A small run that is killed: `python -m tests.faults.victim` forks one for each job it is given.

One import of torch serves all runs. A job is a line of JSON on the standard input, the answer a
line on the standard output: the exit status of the fork (negative: the signal).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

STEPS = 12
EPOCH = 7  # steps: 21 rows, three a step


class Victims:
    """The process that forks; used by the tests."""

    def __init__(self, log: Path) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim"], cwd=ROOT, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
        )  # fmt: skip

    def run(self, folder: Path, **job: Any) -> int:
        """Exit code of one run, or minus the signal that ended it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), **job}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()[-3000:]
        return int(answer)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


def serve() -> None:
    """Fork a run for each line."""
    import torch

    torch.set_num_threads(1)
    import kd_lightning.application  # everything that a run imports
    import kd_lightning.quickstart  # noqa: F401
    from tests.data import kit  # noqa: F401

    out = os.dup(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            folder = Path(job["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            told = os.open(folder / "said.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(told, 1)
            os.dup2(told, 2)
            code = 1
            try:
                code = run(job)
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if "kill_after" in job:
            time.sleep(job["kill_after"])
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                os.kill(child, signal.SIGKILL)
            else:
                os.write(out, b"0\n")
                continue
        status = os.waitpid(child, 0)[1]
        os.write(out, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def run(job: dict[str, Any]) -> int:
    """One fit; its rows and losses go to trace.jsonl, its final weights' digest to final.json."""
    import torch

    from kd_lightning.data.files import read_file  # noqa: F401
    from kd_lightning.trainer import KDTrainer
    from tests.faults.parts import Trace, data, distiller, inject

    torch.manual_seed(5)
    folder = Path(job["folder"])
    module = distiller(job.get("variant", "kl"), job["teacher"])
    keeper = inject(job, folder)
    trainer = KDTrainer(
        accelerator="cpu",
        max_steps=job.get("steps", STEPS),
        max_epochs=job.get("epochs", -1),
        max_time=job.get("max_time"),
        val_check_interval=job.get("validate", 4) or 1.0,
        limit_val_batches=1.0 if job.get("validate", 4) else 0,
        check_val_every_n_epoch=None if job.get("validate", 4) else 1,
        log_every_n_steps=1,
        logger=False,
        callbacks=[Trace(folder, job), keeper],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    place = folder if "batch" in job else folder.parent
    rows = data(place, job.get("rows", 21), job.get("workers", 0), job.get("batch", 3))
    trainer.fit(module, datamodule=rows, resume=job.get("resume", "auto"))
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().numpy().tobytes())
    told = {"step": trainer.global_step, "weights": digest.hexdigest()}
    (folder / "final.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    serve()
