"""Two processes that share both models do what one process does, and what DDP does."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.errors import KDError
from kd_lightning.models.causal import build_student
from kd_lightning.models.loading import load_tokenizer
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.parallel import folder
from kd_lightning.parallel.learned import refuse_unless_same
from kd_lightning.parallel.states import read_weights
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.own import AdapterOff
from tests.parallel import runs
from tests.parallel.conftest import launch
from tests.parallel.together import GREEDY, PROMPTS

EQUAL = [case for case in runs.CASES if case != "own"]


@pytest.mark.parametrize("case", EQUAL)
def test_sharded_is_ddp_is_one_process(case, together, models, tmp_path):
    alone = runs.run(str(models / "teacher"), tmp_path, case, "auto")
    assert len(alone["losses"]) == 20 and max(alone["norms"]) > 1e-3
    for how in ("fsdp", "ddp"):
        found = together["equal"][f"{case}-{how}"]
        assert found["losses"] == pytest.approx(alone["losses"], abs=1e-6, rel=0), how
        assert found["norms"] == pytest.approx(alone["norms"], rel=1e-4), how


def test_clipping_and_accumulation_are_not_without_effect(together):
    equal = together["equal"]
    assert equal["kl_clipped-fsdp"]["losses"] != pytest.approx(equal["kl-fsdp"]["losses"], abs=1e-4)
    first = equal["kl_clipped-fsdp"]["norms"][0]
    assert first == pytest.approx(equal["kl-fsdp"]["norms"][0]) and first > 0.05


def test_each_process_holds_half_of_both_models(together):
    for who in ("student", "teacher"):
        here, altogether = together["sharded"][who]
        assert here == altogether // 2, who


def test_the_fused_loss_runs_on_sharded_weights(together):
    assert together["sharded"]["fused"] == 3  # one pass over both heads at each of three steps


def test_answers_of_sharded_models_are_those_of_whole_ones(together, models):
    """Also where one of the processes has nothing to answer."""
    found = together["sharded"]["answers"]
    assert found["student"] == together["sharded"]["whole_answers"]
    teacher = LocalTeacher(str(models / "teacher"))
    teacher.materialize(torch.device("cpu"))
    assert found["teacher"] == [list(c.tokens) for c in teacher.complete(PROMPTS, GREEDY)]


def test_other_weights_for_a_while(together):
    """What a comparison of the best checkpoint does at the end of a run."""
    found = together["weights_for_a_while"]
    assert found["other"]["answers"] == together["sharded"]["answers"]["student"]
    assert found["again"] == found["own"]
    assert found["other"]["logits"] != pytest.approx(found["own"]["logits"], abs=1e-3)


def names(path):
    found = folder.read_index(path).state_dict_metadata
    return {n.removeprefix("state_dict.") for n in found if n.startswith("state_dict.")}


def test_the_checkpoint_holds_the_student_alone(together, models):
    student = build_student(
        StudentSpec(config=runs.config(tie_word_embeddings=False)),
        load_tokenizer(str(models / "teacher")),
    )
    assert names(models / "x.ckpt") == {f"student.{n}" for n in student.state_dict()}


def test_a_sharded_checkpoint_is_read_by_one_process(together, models):
    module = torch.nn.Module()
    module.student = build_student(
        StudentSpec(config=runs.config(tie_word_embeddings=False)),
        load_tokenizer(str(models / "teacher")),
    )
    read_weights(models / "after.ckpt", module)  # saved while weights were gathered
    whole = torch.load(models / "whole.pt", weights_only=True)
    found = module.student.state_dict()
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_checkpoint_of_adapters_holds_adapters(together, models):
    assert all("lora_" in name for name in names(models / "lora.ckpt"))
    spec = StudentSpec(path=str(models / "other"), lora=LoraSpec(rank=4))
    module = torch.nn.Module()
    module.student = build_student(spec, load_tokenizer(str(models / "teacher")))
    read_weights(models / "lora.ckpt", module)
    whole = torch.load(models / "lora.pt", weights_only=True)
    assert all(torch.equal(v, whole[n]) for n, v in module.student.state_dict().items())


def test_the_own_weights_as_teacher(together, models, tmp_path):
    """The adapter switched off is the model that it was put on: compared with a second copy."""
    folder = str(models / "teacher")
    first = LocalTeacher(str(models / "other"))
    copy = runs.run(folder, tmp_path, "own", "auto", steps=6, told=first, path="other")["losses"]
    own = runs.run(folder, tmp_path, "own", "auto", steps=6, told=AdapterOff(), path="other")[
        "losses"
    ]
    assert own == pytest.approx(copy, abs=1e-6, rel=0)
    for how in ("fsdp", "ddp"):
        assert together["lora"]["own"][how] == pytest.approx(own, abs=1e-6, rel=0), how


def same_from_the_middle(found, whole):
    assert len(found["losses"]) == 5 and len(whole["losses"]) == 8
    assert found["rows"] == whole["rows"][3:]
    assert found["losses"] == pytest.approx(whole["losses"][3:], abs=1e-6, rel=0)


def test_saved_by_two_processes_resumed_by_one(together, models, tmp_path, alone):
    found = runs.demo_run(tmp_path, start=models / "half.ckpt")
    same_from_the_middle(found, together["resumed"])


@pytest.mark.slow
def test_four_processes_resume_what_two_saved_and_hold_two_copies(together, models, tmp_path):
    found = launch(4, models, "resumed", "copies")
    same_from_the_middle(found["resumed"], together["resumed"])
    copies = found["copies"]
    alone = runs.run(str(models / "teacher"), tmp_path, "kl_accumulated", "auto", steps=6)
    assert copies["losses"] == pytest.approx(alone["losses"], abs=1e-6, rel=0)
    assert copies["student"][0] == copies["student"][1] // 2


def test_another_modules_checkpoint_is_refused(tiny_tokenizer):
    student = build_student(StudentSpec(config=runs.config()), tiny_tokenizer)
    state = student.state_dict()
    refuse_unless_same(student, state, "x")
    state.pop("model.lm_head.weight")  # tied: the embedding's name is enough
    refuse_unless_same(student, state, "x")
    state.pop("model.model.norm.weight")
    with pytest.raises(KDError, match=r"x is of another .* lacks model.model.norm.weight"):
        refuse_unless_same(student, state, "x")
    with pytest.raises(KDError, match=r"also holds strange"):
        refuse_unless_same(student, [*student.state_dict(), "strange"], "x")
