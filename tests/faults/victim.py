"""A small run that is killed: `python -m tests.faults.victim` forks one for each job it is given.

One import of torch serves all runs. A job is a line of JSON on the standard input, the answer a
line on the standard output: the exit status of each fork (negative: the signal). A run of two
processes is two forks, which meet as those of a launcher do.
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
from tests.faults import ranks

STEPS = 12
EPOCH = 7  # steps: 21 rows, three a step


class Victims:
    """The process that forks; used by the tests."""

    def __init__(self, log: Path) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        env.pop("PL_GLOBAL_SEED", None)  # of an earlier test: processes of a group would take it
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim"], cwd=ROOT, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
        )  # fmt: skip

    def run(self, folder: Path, **job: Any) -> int:
        """Exit code of one run, or minus the signal that ended it."""
        return self._ask(folder, job)[0]

    def pair(self, folder: Path, **job: Any) -> list[int]:
        """The same for the two ranks of one run (see `ranks.main`)."""
        return self._ask(folder, {"pair": True, **job})

    def _ask(self, folder: Path, job: dict[str, Any]) -> list[int]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"folder": str(folder), **job}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()[-3000:]
        return [int(code) for code in answer.split()]

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
        if job.get("pair"):
            port = ranks.free_port()
            children = [fork(job, rank, port) for rank in (0, 1)]
        else:
            children = [fork(job)]
        if "kill_after" in job:
            time.sleep(job["kill_after"])
            if os.waitpid(children[0], os.WNOHANG) == (0, 0):
                os.kill(children[0], signal.SIGKILL)
            else:
                os.write(out, b"0\n")
                continue
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        os.write(out, (" ".join(map(str, codes)) + "\n").encode())


def fork(job: dict[str, Any], rank: int | None = None, port: int = 0) -> int:
    """The process id of the run, or of one rank of it, which ends after three minutes at most."""
    child = os.fork()
    if child:
        return child
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    said = "said.txt" if rank is None else f"said-{rank}.txt"
    told = os.open(folder / said, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(told, 1)
    os.dup2(told, 2)
    code = 1
    try:
        if rank is None:
            code = run(job)
        else:
            signal.alarm(180)
            os.environ.update(ranks.environment(rank, port))
            code = ranks.main(job)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


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
