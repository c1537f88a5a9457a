"""Two processes without a launcher that would end the other one: `python -m tests.faults.ranks`."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

ROWS = 42
EPOCH = 7  # steps: six rows a step, three a rank


def launch(folder: Path, teacher: str, seconds: float = 150.0, **job: Any) -> tuple[list[int], str]:
    """Exit codes of the two ranks, and what they said; a rank that hangs gives -99."""
    port = free_port()
    job |= {"folder": str(folder), "teacher": teacher}
    started = []
    for rank in (0, 1):
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment(rank, port)}
        command = [sys.executable, "-m", "tests.faults.ranks", json.dumps(job)]
        said = (folder / f"said-{rank}.txt").open("a")
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=said, stderr=said))
    codes, end = [], time.monotonic() + seconds
    for process in started:
        try:
            codes.append(process.wait(max(1.0, end - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            codes.append(-99)
    text = "\n".join((folder / f"said-{r}.txt").read_text()[-2500:] for r in (0, 1))
    return codes, text


def free_port() -> int:
    """Where the ranks may meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(rank: int, port: int) -> dict[str, str]:
    """What a launcher tells a rank."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "x",
    }  # fmt: skip


def listens() -> list[str]:
    """Addresses on which this process waits for connections, as the system writes them."""
    mine, found = set(), []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile, by a thread that writes: no listener
            mine.add(str(fd.readlink()))
    for table in ("tcp", "tcp6"):
        lines = Path("/proc/self/net", table).read_text().splitlines()[1:]
        for _, address, _, state, *others in map(str.split, lines):
            if state == "0A" and f"socket:[{others[5]}]" in mine:
                found.append(address.split(":")[0])
    return found


def main(job: dict[str, Any]) -> int:
    """This rank's part of a run."""
    import torch
    from lightning.pytorch.callbacks import Callback

    from kd_lightning.parallel.ddp import LocalDDP
    from kd_lightning.parallel.strategy import KDStrategy
    from kd_lightning.reliability.finite import NotFinite
    from kd_lightning.trainer import KDTrainer
    from tests.faults.parts import Trace, data, distiller, inject

    torch.set_num_threads(1)
    rank, folder = int(os.environ["RANK"]), Path(job["folder"])
    torch.manual_seed(job.get("seeds", (5, 5))[rank])
    faults = ("raise_at", "signal_at", "kill_at", "kill_in_save", "empty_at", "limit_at")
    spared = () if rank == job.get("rank", rank) else faults
    mine = {name: told for name, told in job.items() if name not in spared}

    kind = job.get("strategy", "ddp")

    def local(value):
        """This rank's part, without an exchange: the other one may be gone."""
        return (value.to_local() if hasattr(value, "to_local") else value).detach()

    class Spoil(Callback):
        """Makes one rank's gradient (its loss, where weights are sharded) not a number, once."""

        def __init__(self):
            self.hook, self.norms = None, []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            weight = next(pl_module.student.parameters())
            self.norms.append(float(local(weight).norm()))
            if rank == job.get("spoil_rank") and batch_idx == job["spoil_at"]:
                if kind.startswith("fsdp"):
                    batch.weights *= torch.nan
                else:  # before the ranks exchange it
                    self.hook = weight.register_hook(lambda g: g * torch.nan)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if self.hook is not None:
                self.hook.remove()

    (folder / f"rank-{rank}").mkdir(exist_ok=True)
    module = distiller(job.get("variant", "kl"), job["teacher"])
    module.guard.settings = NotFinite(then=job.get("then", "raise"))
    spoil = Spoil()
    strategy: Any = LocalDDP(timeout=timedelta(seconds=120))
    if kind.startswith("fsdp"):
        sharded = kind == "fsdp"
        strategy = KDStrategy(save_distributed_checkpoint=sharded, timeout_seconds=120)
    trainer = KDTrainer(
        accelerator="cpu", devices=2, strategy=strategy,
        max_steps=job.get("steps", 5), log_every_n_steps=1, logger=False, limit_val_batches=0,
        callbacks=[spoil, Trace(folder / f"rank-{rank}", mine), inject(mine, folder)],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        use_distributed_sampler=False,
    )  # fmt: skip
    begun = time.monotonic()
    try:
        trainer.fit(module, datamodule=data(folder, rows=ROWS), resume="auto")
    finally:
        digest, finite = hashlib.sha256(), True
        for value in module.state_dict().values():
            finite &= bool(local(value).isfinite().all())
            digest.update(local(value).numpy().tobytes())
        told = {"step": trainer.global_step, "weights": digest.hexdigest(), "finite": finite}
        (folder / f"listens-{rank}.json").write_text(json.dumps(listens()))
        (folder / f"norms-{rank}.json").write_text(json.dumps(spoil.norms))
        (folder / f"end-{rank}.json").write_text(json.dumps(told))
        print(f"rank {rank} ended after {time.monotonic() - begun:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    main(json.loads(sys.argv[1]))
