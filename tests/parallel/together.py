"""What two processes find out together, in one launch; results as JSON.

torchrun --nproc_per_node=2 -m tests.parallel.together FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kd_lightning.kernels import linear_loss
from kd_lightning.parallel import states
from kd_lightning.parallel.sharding import give_back
from kd_lightning.parallel.whole import in_one_piece
from kd_lightning.teachers.own import AdapterOff
from kd_lightning.types import Sampling
from tests.parallel import few_bits, runs

GREEDY = Sampling(max_new_tokens=6)
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]


def local(parameters: Any) -> list[int]:
    """Numbers of elements: here, and altogether."""
    all_of_them = list(parameters)
    here = [p.to_local() if hasattr(p, "to_local") else p for p in all_of_them]
    return [sum(p.numel() for p in here), sum(p.numel() for p in all_of_them)]


def equal(folder: Path) -> dict[str, Any]:
    """Every case by sharding and by DDP: what each step loses."""
    teacher = str(folder / "teacher")
    found = {}
    for how in ("fsdp", "ddp"):
        for case in runs.CASES:
            if case == "own":
                continue
            made = runs.run(teacher, folder, case, how, devices=2)
            found[f"{case}-{how}"] = {k: made[k] for k in ("losses", "norms")}
    return found


def sharded(folder: Path) -> dict[str, Any]:
    """Shares of both models, the fused path, the checkpoint, generation, measuring, export."""
    teacher = str(folder / "teacher")
    fused = []
    original = linear_loss.sweep
    linear_loss.sweep = lambda *a, **k: (fused.append(1), original(*a, **k))[1]  # type: ignore
    made = runs.run(teacher, folder, "kl", "fsdp", devices=2, steps=3, save=str(folder / "x.ckpt"))
    linear_loss.sweep = original
    model = made["model"]
    found: dict[str, Any] = {"fused": len(fused)}
    mine = PROMPTS if dist.get_rank() == 0 else []  # nothing to answer on rank 1
    answers = {
        "student": [c.tokens for c in model.student.complete(mine, GREEDY)],
        "teacher": [c.tokens for c in model.teacher.complete(mine, GREEDY)],
    }
    found["answers"] = answers
    made["trainer"].save_checkpoint(folder / "after.ckpt")  # weights were gathered in between
    found["student"] = local(model.student.parameters())
    teacher_model = model.teacher.model
    give_back(teacher_model)
    found["teacher"] = local(teacher_model.parameters())
    whole = in_one_piece(model.student, model.spec)
    if whole is not None:
        torch.save(whole.state_dict(), folder / "whole.pt")
        found["whole_answers"] = [c.tokens for c in whole.complete(PROMPTS, GREEDY)]
    return found


def lora(folder: Path) -> dict[str, Any]:
    """Adapters: the checkpoint, and the student as its own teacher."""
    teacher = str(folder / "teacher")
    saved = str(folder / "lora.ckpt")
    made = runs.run(teacher, folder, "lora", "fsdp", devices=2, steps=2, save=saved)
    whole = in_one_piece(made["model"].student, made["model"].spec)
    if whole is not None:
        torch.save(whole.state_dict(), folder / "lora.pt")
    own = {}
    for how in ("fsdp", "ddp"):
        made = runs.run(
            teacher, folder, "own", how, devices=2, steps=6, told=AdapterOff(), path="other"
        )
        own[how] = made["losses"]
    return {"own": own}


def resumed(folder: Path) -> dict[str, Any]:
    """A run with a checkpoint in its middle; from there on, if it is there already."""
    half = folder / "half.ckpt"
    if half.exists():
        return runs.demo_run(folder, start=half)
    return runs.demo_run(folder, save=half)


def copies(folder: Path) -> dict[str, Any]:
    """Two copies, each sharded over two processes (with four of them)."""
    teacher = str(folder / "teacher")
    made = runs.run(teacher, folder, "kl_accumulated", "hsdp", devices=dist_size(), steps=6)
    model = made["model"]
    return {"losses": made["losses"], "student": local(model.student.parameters())}


def weights_for_a_while(folder: Path) -> dict[str, Any]:
    """Other weights for a while, after the own ones were gathered; then the own ones again."""
    made = runs.run(str(folder / "teacher"), folder, "kl", "fsdp", devices=2, steps=1)
    model = made["model"]
    model.student.complete(PROMPTS, GREEDY)
    own = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    found = []
    for change in (
        lambda: None,
        lambda: states.read_weights(folder / "x.ckpt", model),
        lambda: model.load_state_dict(own),
    ):
        change()
        with torch.no_grad():
            logits = model.student(runs.global_batch(0), lambda output: output.logits)
        answers = [c.tokens for c in model.student.complete(PROMPTS, GREEDY)]
        found.append({"logits": logits.flatten()[:50].tolist(), "answers": answers})
    return dict(zip(("own", "other", "again"), found, strict=True))


def dist_size() -> int:
    return int(os.environ["WORLD_SIZE"])


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "equal": equal,
    "sharded": sharded,
    "lora": lora,
    "resumed": resumed,
    "weights_for_a_while": weights_for_a_while,
    "copies": copies,
    "few_bits": few_bits.fast,
    "few_bits_every": few_bits.every,
    "few_bits_further": few_bits.further,
}


def main(folder: str, *parts: str) -> None:
    torch.set_num_threads(1)
    for name in parts or PARTS:
        found = PARTS[name](Path(folder))
        if os.environ["RANK"] == "0":
            Path(folder, f"{name}-{os.environ['WORLD_SIZE']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
