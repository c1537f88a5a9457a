"""What is estimated without contents is what real steps take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd_lightning.distiller import Distiller
from kd_lightning.doctor import parts as memory
from kd_lightning.doctor.counting import Meter, Paper
from kd_lightning.doctor.machine import Machine, parse, shown
from kd_lightning.doctor.memory import Shape, estimate
from kd_lightning.doctor.paper import BITS
from kd_lightning.errors import KDError
from kd_lightning.losses import CrossEntropy, ForwardKL, JensenShannon
from kd_lightning.models.causal import build_student
from kd_lightning.models.loading import load_tokenizer
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.teachers.local import LocalTeacher
from tests.conftest import ROOT
from tests.doctor.kit import looked_at, patient, said
from tests.doctor.real_peak import counted, estimated
from tests.tiny import save_model

QWEN = {
    "model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "dtype": "bfloat16",
}  # fmt: skip
SMALL = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "tie_word_embeddings": True,
}  # fmt: skip
LARGE = {
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
GIB = 2**30


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> tuple[str, str]:
    """Folders that hold a config.json and nothing else."""
    made = []
    for name, fields in (("student", SMALL), ("teacher", LARGE)):
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps({**QWEN, **fields}))
        made.append(str(folder))
    return made[0], made[1]


@pytest.mark.parametrize(
    "spec",
    [
        {"width": 64},
        {"width": 64, "vocab": 3000},
        {"width": 64, "gradient_checkpointing": True},
        {"width": 64, "dtype": "bfloat16"},
    ],
    ids=lambda spec: " ".join(f"{k}={v}" for k, v in spec.items()),
)
def test_within_a_tenth_of_what_a_fit_takes(tiny_teacher, tmp_path, spec):
    made = estimated(tiny_teacher, 4, 200, **spec)
    assert made.total == pytest.approx(
        counted(tiny_teacher, 4, 200, str(tmp_path), **spec), rel=0.1
    )


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_within_a_tenth_with_adapters_on_few_bits(tiny_teacher, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    save_model(tmp_path / "wide", width=256, layers=4, max_position_embeddings=2048)
    spec = {"path": str(tmp_path / "wide"), "quantization": bits, "lora": LoraSpec(rank=4)}
    made = estimated(tiny_teacher, 4, 200, **spec)
    real = build_student(StudentSpec(**spec), load_tokenizer(spec["path"]))
    held = sum(p.nbytes for p in real.parameters())
    scales = 4 / 64 if bits == "nf4" else 0  # beside the weights
    held += scales * sum(2 * p.numel() for p in real.parameters() if not p.is_floating_point())
    assert made.parts[memory.WEIGHTS] == pytest.approx(held, rel=0.02)
    found = counted(tiny_teacher, 4, 200, str(tmp_path), **spec)
    print(bits, made.total, found)
    assert made.total == pytest.approx(found, rel=0.1)


@pytest.mark.slow
def test_within_a_tenth_of_what_the_system_sees(tiny_teacher, tmp_path):
    # memory that is given back is to be seen as given back
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.doctor.real_peak", tiny_teacher, str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **given_back},
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["resident"] > 300 * 2**20
    assert told["estimated"] == pytest.approx(told["resident"], rel=0.1)


def test_the_meter_counts_storages_once_and_lets_go():
    meter = Meter()
    with meter:
        a = torch.zeros(1000)
        b = a.view(10, 100)[2:]
        assert meter.live.total() == 4000
        with meter.counting("more"):
            c = b + 1
        assert meter.live == {"other": 4000, "more": 3200}
        meter.hold([c], "held")
        assert meter.live["held"] == 3200 and meter.live["more"] == 0
        del a, b, c
    assert meter.live.total() == 0 and meter.most == 7200
    paper = Paper().empty(10**6, 10**6, dtype=torch.float32)
    with meter:
        paper + 1
    assert meter.most == 4 * 10**12


def test_real_sizes_need_no_weights_and_no_hub(qwen):
    student, teacher = qwen
    model = Distiller(
        StudentSpec(path=student, gradient_checkpointing=True),
        ForwardKL(),
        LocalTeacher(teacher, dtype="bfloat16"),
        micro_batch_tokens=8192,
        gradient_clip_norm=1.0,
    )
    shape = Shape.of(model, 32, 2048)
    assert shape == Shape(4, 2047, 8)
    machine = Machine(8, "cuda", parse("141GiB"), "bf16-mixed")
    found = estimate(model, shape, machine)
    parts = found.parts
    assert (found.student_parameters, found.teacher_parameters) == (596_049_920, 8_190_735_360)
    assert parts[memory.WEIGHTS] == pytest.approx(4 * 596_049_920, rel=1e-3)
    assert parts[memory.TEACHER] == pytest.approx(2 * 8_190_735_360, rel=1e-3)
    assert parts[memory.OPTIMIZER] == pytest.approx(8 * 596_049_920, rel=1e-3)
    assert parts[memory.GRADIENTS] == pytest.approx(4 * 596_049_920, rel=1e-3)
    # tiles of both models, their gradient by the head: far from tokens x ids
    assert parts[memory.LOSS] < 3 * GIB < 4 * shape.tokens * 151_936
    assert 20 * GIB < found.total < machine.memory


def test_sharding_divides_what_is_sharded(tiny_teacher):
    model = Distiller(
        StudentSpec(config={**QWEN, **SMALL, "num_hidden_layers": 4, "vocab_size": 2000}),
        ForwardKL(),
        LocalTeacher(tiny_teacher),
    )
    shape, one = Shape(2, 64, 2), Machine(8, "cpu", precision="bf16-mixed")
    whole = estimate(model, shape, one)
    spread = estimate(model, shape, replace(one, shards=8))
    for name in (memory.WEIGHTS, memory.OPTIMIZER, memory.TEACHER, memory.GRADIENTS):
        assert spread.parts[name] == pytest.approx(whole.parts[name] / 8, rel=0.02), name
    assert memory.GATHERED in spread.parts and memory.GATHERED not in whole.parts
    assert memory.BUCKETS in whole.parts and memory.BUCKETS not in spread.parts
    assert spread.state == pytest.approx(whole.state, rel=1e-3)
    off = estimate(model, shape, replace(one, shards=8, offloads=True))
    assert memory.OPTIMIZER not in off.parts and off.total < spread.total


def test_what_has_few_bits_is_not_divided(qwen):
    student, teacher = qwen
    model = Distiller(
        StudentSpec(path=student, quantization="nf4", lora=LoraSpec(rank=4)),
        JensenShannon(),
        LocalTeacher(teacher, dtype="bfloat16", quantization="nf4"),
    )
    shape, one = Shape(1, 128), Machine(8, "cuda", parse("141GiB"), "bf16-mixed")
    whole, spread = (estimate(model, shape, m) for m in (one, replace(one, shards=8)))
    assert spread.parts[memory.TEACHER] == whole.parts[memory.TEACHER] < 6.5 * GIB  # 15.3 in full
    floats = 4 * 155_582_464  # the embedding; layers have 440e6 weights in 4 bits
    assert whole.parts[memory.WEIGHTS] == pytest.approx(floats + 440.4e6 * BITS["nf4"], rel=0.02)
    assert spread.parts[memory.WEIGHTS] == pytest.approx(
        floats / 8 + 440.4e6 * BITS["nf4"], rel=0.05
    )
    assert whole.state < GIB / 10  # adapters and their moments: no frozen weight is saved


def test_adapters_quantised_and_absent_teachers(tiny_teacher):
    spec = StudentSpec(config={**QWEN, **SMALL, "num_hidden_layers": 2, "vocab_size": 2000})
    shape, machine = Shape(2, 64), Machine()

    def of(**changes):
        student = changes.pop("student", spec)
        loss = changes.pop("loss", JensenShannon())
        return estimate(
            Distiller(student, loss, LocalTeacher(tiny_teacher, **changes)), shape, machine
        ).parts

    full = of()
    lora = of(student=replace(spec, lora=LoraSpec(rank=4)))
    assert lora[memory.OPTIMIZER] < full[memory.OPTIMIZER] / 20
    assert lora[memory.WEIGHTS] == pytest.approx(full[memory.WEIGHTS], rel=0.05)
    assert of(quantization="int8")[memory.TEACHER] < 0.6 * full[memory.TEACHER]
    assert memory.TEACHER not in of(loss=CrossEntropy())


def test_what_helps_is_told_with_figures(tmp_path):
    found = patient(tmp_path, machine=Machine(memory=2**22))
    checked = looked_at(found, "memory")["memory"]
    (finding,) = checked.findings
    lines = [str(each) for each in finding.shown[1:]]
    assert any("gradient_checkpointing=true" in line for line in lines), lines
    assert all(" (-" in line for line in lines)
    cached = next(line for line in lines if "cached teacher" in line)
    assert "MiB" in cached and not said(checked, checked.level).count("fits")


def test_sizes_are_read_and_written():
    assert parse("141GiB") == 141 * GIB and parse("80 GB") == 80 * 10**9 and parse("1024") == 1024
    assert parse("1.5GiB") == 1.5 * GIB and shown(1.5 * GIB) == "1.5 GiB" and shown(12) == "12 B"
    with pytest.raises(KDError, match="write a size such as 80GB"):
        parse("a lot")


def test_the_machine_is_the_configured_one(tmp_path):
    from argparse import Namespace

    told = Namespace(
        accelerator="gpu", devices=4, num_nodes=2, precision="bf16-mixed",
        strategy={"class_path": "kd_lightning.parallel.strategy.KDStrategy",
                  "init_args": {"replicas": 2, "student": {"cpu_offload": True}}},
    )  # fmt: skip
    machine = Machine.of(told, memory="80GB")
    assert (machine.ranks, machine.shards, machine.device) == (8, 4, "cuda")
    assert machine.offloads and machine.half == torch.bfloat16 and machine.memory == 80 * 10**9
    assert Machine.of(told, gpus=16).ranks == 16
    with pytest.raises(KDError, match="at least 1"):
        Machine.of(told, gpus=0)
    assert Path(tmp_path).exists()
