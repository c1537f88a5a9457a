"""What is refused at set-up, and what one process can see of sharding."""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

import kd_lightning.losses as losses
from kd_lightning.errors import KDError
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.parallel.place import place
from kd_lightning.parallel.sharding import Sharding
from kd_lightning.parallel.states import by_name, by_number
from kd_lightning.parallel.strategy import KDStrategy
from kd_lightning.parallel.whole import in_one_piece
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.own import AdapterOff
from tests.parallel import runs
from tests.tiny import save_model


def test_tensor_parallel_and_odd_numbers_of_copies_are_refused(models, tmp_path, alone):
    with pytest.raises(KDError, match="write tensor_parallel_size=1"):
        KDStrategy(tensor_parallel_size=2)
    with pytest.raises(KDError, match="replicas must be at least 1"):
        KDStrategy(replicas=0)
    fit = runs.trainer(tmp_path, 1, devices=1, strategy=KDStrategy(replicas=2))
    with pytest.raises(KDError, match="1 processes cannot hold 2 copies"):
        fit.fit(runs.distiller(str(models / "teacher"), "ForwardKL"), runs.Batches(0, 1))


def test_other_sharding_strategies_are_refused():
    with pytest.raises(KDError, match="FSDPStrategy does not know the teacher"):
        place(FSDPStrategy(), torch.nn.Module(), None, losses.CrossEntropy())


def test_a_loss_that_learns_is_refused(models, tmp_path, alone):
    model = runs.distiller(str(models / "teacher"), "ForwardKL")
    model.loss.register_parameter("factor", torch.nn.Parameter(torch.ones(())))
    fit = runs.trainer(tmp_path, 1, devices=1, strategy=KDStrategy())
    with pytest.raises(KDError, match="ForwardKL learns parameters of its own"):
        fit.fit(model, runs.Batches(0, 1))


def test_the_own_weights_need_adapters(models, tmp_path):
    model = runs.distiller(str(models / "teacher"), "ForwardKL", told=AdapterOff())
    with pytest.raises(KDError, match=r"write --model\.student\.lora\.rank=16"):
        runs.trainer(tmp_path, 1).fit(model, runs.Batches(0, 1))


def test_quantised_weights_need_adapters():
    with pytest.raises(KDError, match=r"model\.student\.lora\.rank=16"):
        StudentSpec(path="x", quantization="nf4")
    StudentSpec(path="x", quantization="nf4", lora=LoraSpec())


def test_validation_never_gathers_inference_tensors(models, tmp_path, alone):
    """Lightning's own check would spare gloo only: a GPU run could not train after validating."""
    fit = runs.run(str(models / "teacher"), tmp_path, "kl", "fsdp", steps=1)["trainer"]
    loops = (fit.validate_loop, fit.test_loop, fit.predict_loop, fit.fit_loop.epoch_loop.val_loop)
    assert not any(loop.inference_mode for loop in loops)


def test_no_space_is_seen_before_shards_are_written(models, tmp_path, alone, monkeypatch):
    told = runs.run(str(models / "teacher"), tmp_path, "kl", "fsdp", steps=1)["trainer"]
    usage = SimpleNamespace(total=10**9, used=10**9, free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(KDError, match=r"no space .*x\.ckpt: 5,000 bytes are free and "):
        told.save_checkpoint(tmp_path / "x.ckpt")
    assert not (tmp_path / "x.ckpt").exists()


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("fsdp_kept", "fsdp_last")]


@pytest.mark.parametrize("how", ["fsdp", "fsdp_file", "fsdp_offload", *SLOW])
def test_one_process_resumes_what_it_saved(how, models, tmp_path, alone):
    teacher = str(models / "teacher")
    whole = runs.run(teacher, tmp_path, "kl_accumulated", how, steps=6)
    path = str(tmp_path / "x.ckpt")
    runs.run(teacher, tmp_path, "kl_accumulated", how, steps=3, save=path)
    rest = runs.run(teacher, tmp_path, "kl_accumulated", how, steps=3, first=3, start=path)
    assert rest["losses"] == whole["losses"][3:]
    plain = runs.run(teacher, tmp_path, "kl_accumulated", "auto", steps=6)
    assert whole["losses"] == pytest.approx(plain["losses"], abs=1e-6, rel=0)


def test_a_file_goes_from_sharded_to_plain_and_back(models, tmp_path, alone):
    teacher = str(models / "teacher")
    whole = runs.run(teacher, tmp_path, "lora", "auto", steps=6)["losses"]
    for first, then in (("fsdp_file", "auto"), ("auto", "fsdp")):
        path = str(tmp_path / f"{first}.ckpt")
        runs.run(teacher, tmp_path, "lora", first, steps=3, save=path)
        rest = runs.run(teacher, tmp_path, "lora", then, steps=3, first=3, start=path)
        assert rest["losses"] == pytest.approx(whole[3:], abs=1e-6, rel=0), first


def test_a_plain_checkpoint_of_adapters_holds_adapters(models, tmp_path):
    path = tmp_path / "x.ckpt"
    runs.run(str(models / "teacher"), tmp_path, "lora", "auto", steps=1, save=str(path))
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert saved and all("lora_" in name for name in saved)


@pytest.mark.parametrize("kind", [True, "selective"])
def test_recomputed_activations_change_nothing(kind, models, tmp_path, alone):
    teacher = str(models / "teacher")
    kept = runs.run(teacher, tmp_path, "kl", "fsdp", steps=3)["losses"]
    again = runs.run(teacher, tmp_path, "kl", "fsdp", steps=3, gradient_checkpointing=kind)
    assert again["losses"] == pytest.approx(kept, abs=1e-6, rel=0)


def test_selective_recomputation_does_not_repeat_products(models, tiny_tokenizer):
    """Counted: matrix products of a step, kept or computed again."""
    from torch.utils.flop_counter import FlopCounterMode

    from kd_lightning.models.causal import build_student

    counts = {}
    for kind in (False, True, "selective"):
        spec = StudentSpec(config=runs.config(), gradient_checkpointing=kind, attention="sdpa")
        student = build_student(spec, tiny_tokenizer)
        with FlopCounterMode(display=False) as counter:
            student(runs.global_batch(0)).hidden.sum().backward()
        counts[kind] = counter.get_total_flops()
    assert counts["selective"] == counts[False] < counts[True]


@pytest.mark.slow
def test_compiled_layers_under_sharding(models, tmp_path, alone):
    teacher = str(models / "teacher")
    plain = runs.run(teacher, tmp_path, "kl", "fsdp", steps=2)["losses"]
    made = runs.run(teacher, tmp_path, "kl", "fsdp", steps=2, compile=True)["losses"]
    assert made == pytest.approx(plain, abs=1e-5, rel=0)


def test_half_precision_runs_and_stays_near(models, tmp_path, alone):
    teacher = str(models / "teacher")
    plain = runs.run(teacher, tmp_path, "kl", "fsdp", steps=3)["losses"]
    for precision in ("bf16-mixed", "bf16-true"):
        made = runs.run(teacher, tmp_path, "kl", "fsdp", steps=3, precision=precision)
        assert made["losses"] == pytest.approx(plain, rel=2e-2)
        kinds = {p.dtype for p in made["model"].student.parameters()}
        expected = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
        assert kinds == {expected}
        assert {p.dtype for p in made["model"].teacher.model.parameters()} == {torch.float32}


def test_optimizer_states_by_name_and_by_number():
    state = {"state": {"b": 1, "a": 2}, "param_groups": [{"lr": 1.0, "params": ["a", "b"]}]}
    numbered = by_number(state, ["a", "b"])
    assert numbered == {"state": {1: 1, 0: 2}, "param_groups": [{"lr": 1.0, "params": [0, 1]}]}
    assert by_name(numbered, ["a", "b"]) == state


def test_settings_are_told_apart():
    with pytest.raises(TypeError):
        Sharding(offload=True)


def test_adapters_on_8_bits_are_refused():
    student = torch.nn.Linear(2, 2)
    student.weight = torch.nn.Parameter(student.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(KDError, match=r"quantization=nf4, or --trainer\.strategy=ddp"):
        KDStrategy().shard_student(student)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("how", ["auto", "fsdp"])
@pytest.mark.parametrize("told", ["own", "quantised"])
def test_adapters_on_4_bits(how, told, models, tmp_path, alone):
    """One copy of the 4-bit weights is student and teacher, or each has its own."""
    folder = str(tmp_path / "wide")
    save_model(tmp_path / "wide", width=64, tie_word_embeddings=False)  # 4 bits: blocks of 64
    teacher = AdapterOff() if told == "own" else LocalTeacher(
        folder, quantization="nf4", quantization_limit=None
    )  # fmt: skip
    model = runs.distiller(folder, "both", lora=LoraSpec(rank=4), told=teacher)
    model.spec = replace(model.spec, quantization="nf4")
    seen = runs.Losses(model)
    fit = runs.trainer(tmp_path, 3, devices=1, strategy=runs.strategy(how))
    fit.fit(model, runs.Batches(0, 3))
    assert len(seen.values) == 3 and seen.norms[0] > 0
    frozen = [p for p in model.student.parameters() if p.dtype == torch.uint8]
    assert frozen and not any(p.requires_grad for p in frozen)
    whole = in_one_piece(model.student, model.spec)
    assert not any(p.dtype == torch.uint8 for p in whole.parameters())
