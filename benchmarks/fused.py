"""What head and loss cost: fused, in recomputed chunks, and over all logits at once.

`python -m benchmarks.fused` runs forward and backward of each in turn, in one process, on fresh
random data, and prints the medians of CPU seconds, and by how much the memory of a process of its
own grows at most (Linux; 0 elsewhere).
`--repeats 1` is a quick look; `--masked 0.6` leaves that share of the tokens out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from kd_lightning.losses import ForwardKL, JensenShannon
from kd_lightning.losses.base import TokenLoss
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.models.heads import LinearHead
from kd_lightning.types import Batch, ModelOutput

TOKENS, VOCAB, WIDTH = 2048, 32_000, 512


def fused(losses: dict[str, TokenLoss], *models_and_batch) -> Tensor:
    """What a training step runs."""
    return TokenSum(losses, *models_and_batch).terms()["loss"]


def chunked(losses: dict[str, TokenLoss], *models_and_batch) -> Tensor:
    """Chunks through the head's own forward, computed again in the backward pass."""
    return TokenSum(losses, *models_and_batch).step_by_step().sum()


def eager(losses: dict[str, TokenLoss], *models_and_batch) -> Tensor:
    """All logits at once, differentiated by autograd."""
    return TokenSum(losses, *models_and_batch, chunk=10**9).step_by_step().sum()


Way = Callable[..., Tensor]
WAYS: tuple[Way, ...] = (fused, chunked, eager)


def fresh(head: LinearHead, other: LinearHead, masked: float) -> tuple[ModelOutput, ...]:
    """Student and teacher states that nobody has seen, and a batch of which a share is masked."""
    ids = torch.randint(0, VOCAB, (1, TOKENS))
    batch = Batch(
        ids,
        torch.ones_like(ids),
        torch.randint(0, VOCAB, (1, TOKENS)),
        (torch.rand(1, TOKENS) >= masked).float(),
        torch.zeros(1, dtype=torch.long),
        torch.zeros(1, dtype=torch.long),
    )
    states = torch.randn(1, TOKENS, WIDTH)
    near = states + 0.3 * torch.randn_like(states)
    return ModelOutput(states.requires_grad_(), head), ModelOutput(near, other), batch


def memory(name: str) -> int:
    """Bytes of one of the process's memory counters; 0 where the system has none."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+)", status.read_text()) if status.exists() else None
    return 1024 * int(found[1]) if found else 0


def heads() -> tuple[LinearHead, LinearHead]:
    """A student's head to train and a teacher's near it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    linear, other = nn.Linear(WIDTH, VOCAB, bias=False), nn.Linear(WIDTH, VOCAB, bias=False)
    other.requires_grad_(False)
    other.weight.copy_(linear.weight.detach() + 0.3 * torch.randn(VOCAB, WIDTH) / WIDTH**0.5)
    return LinearHead(linear, VOCAB), LinearHead(other, VOCAB)


def seconds(way: Way, loss: TokenLoss, setting: tuple) -> float:
    """CPU seconds of one forward and backward pass."""
    start = time.process_time()
    way({"loss": loss}, *setting).backward()
    return time.process_time() - start


def peak(way: Way, loss: TokenLoss, masked: float) -> int:
    """Bytes by which this process grows at most: to be run in a fresh one."""
    setting = fresh(*heads(), masked)
    small = ModelOutput(setting[0].hidden[:, :8], setting[0].head)
    few = setting[2].rows(0, 1)
    few = few.replace(targets=few.targets[:, :8], weights=few.weights[:, :8])
    other = ModelOutput(setting[1].hidden[:, :8], setting[1].head)
    way({"loss": loss}, small, other, few)  # what libraries allocate for themselves
    before = memory("VmRSS")
    way({"loss": loss}, *setting).backward()
    return memory("VmHWM") - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count, at least 1")
    parser.add_argument("--masked", type=float, default=0.0)
    asked = parser.parse_args()
    models = heads()
    print(f"{TOKENS} tokens, {asked.masked:.0%} masked, {VOCAB:,} ids, width {WIDTH}, 1 thread")
    print("loss            way        CPU s   times     MB")
    for loss in (ForwardKL(), JensenShannon()):
        seen: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
        for repeat in range(asked.repeats + 1):
            for way in WAYS:
                models[0].linear.weight.grad = None
                found = seconds(way, loss, fresh(*models, asked.masked))
                if repeat:  # the first round warms up
                    seen[way.__name__].append(found)
        middle = {name: statistics.median(values) for name, values in seen.items()}
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as alone:
                size = alone.apply(peak, (way, loss, asked.masked)) / 2**20
            name, cpu = way.__name__, middle[way.__name__]
            times = cpu / middle["fused"]
            print(
                f"{type(loss).__name__:15} {name:8} {cpu:7.2f} {times:7.2f} {size:6.0f}", flush=True
            )


if __name__ == "__main__":
    main()
