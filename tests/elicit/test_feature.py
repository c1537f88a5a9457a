"""What a teacher's forward says of elicited records, read by a student that trains on them."""

from __future__ import annotations

import json

import pytest
import torch

from kd_lightning import losses
from kd_lightning.data.skills.instruction_following import InstructionFollowing
from kd_lightning.distiller import Distiller
from kd_lightning.elicit.feature import Features
from kd_lightning.errors import KDError
from kd_lightning.knowledge.engine import Elicitation, Seeds
from kd_lightning.models.spec import StudentSpec
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.trainer import KDTrainer
from tests.data import kit
from tests.knowledge.kit import Counting
from tests.tiny import config


def elicited(tmp_path, tiny_teacher, **more):
    rows = [{"prompt": f"say {i}", "answer": f"it is {i}", "id": f"r{i}"} for i in range(12)]
    return Elicitation(
        str(tmp_path / "set"),
        [Features(**more)],
        {"teacher": LocalTeacher(tiny_teacher, licence="apache-2.0")},
        Seeds(kit.write(tmp_path / "rows.jsonl", rows)),
        skill=InstructionFollowing(max_length=64),
        said=lambda line: None,
    )


def fit(tmp_path, teacher, tiny_teacher):
    data = InstructionFollowing(
        knowledge=str(tmp_path / "set"), validation_share=0.25, max_length=64, batch_size=4
    )
    torch.manual_seed(3)
    module = Distiller(
        StudentSpec(config=config(layers=1), tokenizer=tiny_teacher),
        losses.ForwardKL(),
        teacher,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )
    trainer = KDTrainer(
        accelerator="cpu", devices=1, max_steps=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path / "run",
        use_distributed_sampler=False, log_every_n_steps=1, limit_val_batches=1,
        check_val_every_n_epoch=None, val_check_interval=1000,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return float(trainer.callback_metrics["train/loss"])


def test_a_student_learns_from_the_features_what_it_learns_from_the_teacher(tmp_path, tiny_teacher):
    elicited(tmp_path, tiny_teacher, kind="hidden").run()
    cached = fit(tmp_path, CachedTeacher(str(tmp_path / "set/features")), tiny_teacher)
    live = fit(tmp_path, LocalTeacher(tiny_teacher), tiny_teacher)
    assert cached == pytest.approx(live, rel=5e-3)  # states are stored in bfloat16
    card = json.loads((tmp_path / "set/card.json").read_text())
    assert card["steps"][0]["notes"]["tokens"] > 12 and card["records"] == 12


def test_refusals(tmp_path, tiny_teacher):
    made = elicited(tmp_path, tiny_teacher)
    made.skill = None
    with pytest.raises(KDError, match="renders the records as a skill does: write `skill`"):
        made.run()
    made = elicited(tmp_path, tiny_teacher)
    made.generators = {"teacher": Counting()}
    with pytest.raises(KDError, match=r"needs a forward pass \(logits\), which Counting"):
        made.run()
