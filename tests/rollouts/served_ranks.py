"""Two ranks that share a student, and draw from one server.

torchrun --nproc_per_node=2 -m tests.rollouts.served_ranks STUDENT TEACHER FOLDER URL
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

import kd_lightning.losses as losses
from callbacks.sync_rollout_weights import SyncRolloutWeights
from kd_lightning.distiller import Distiller
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers.local import LocalTeacher
from tests.parallel.runs import Losses, strategy, trainer
from tests.rollouts import kit, runs


def main(student: str, teacher: str, folder: str, url: str) -> None:
    torch.set_num_threads(1)
    rollout = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
    module = Distiller(
        StudentSpec(path=student), losses.ReverseKL(), LocalTeacher(teacher), rollout=rollout,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    )  # fmt: skip
    seen, said = Losses(module), []
    settle = rollout.settle
    rollout.settle = lambda made, fix: (said.append(kit.texts(made)), settle(made, fix))[1]
    run = trainer(
        Path(folder), 3, devices=2, strategy=strategy("fsdp"), callbacks=[SyncRolloutWeights()]
    )
    run.fit(module, runs.Rows())
    told = {"said": said, "losses": seen.values, "sharded": module.student.placement is not None}
    Path(folder, f"said-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
