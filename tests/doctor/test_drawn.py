"""Keys and values of answers that a student writes, told before they are there."""

from __future__ import annotations

import copy

import torch

from kd_lightning.distiller import Distiller
from kd_lightning.doctor.drawn import cache_bytes, drawn_here
from kd_lightning.doctor.machine import Machine
from kd_lightning.doctor.memory import Shape, estimate
from kd_lightning.doctor.parts import ROLLOUTS
from kd_lightning.losses import ReverseKL
from kd_lightning.models.causal import build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rollouts import FromData, FromStudent, Mixed
from kd_lightning.rollouts.auto import Auto
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Sampling
from tests.tiny import config, tokenizer


def distiller(rollout, teacher=None):
    spec = StudentSpec(config=config(layers=3))
    return Distiller(spec, ReverseKL(), teacher, rollout=rollout)


def test_it_is_what_a_generation_really_holds():
    student = build_student(StudentSpec(config=config(layers=3)), tokenizer()).eval()
    ids = torch.full((6, 20 + 12), 5)
    with torch.no_grad():
        cache = student.transformer(input_ids=ids, use_cache=True).past_key_values
    real = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    told = FromStudent(n=3, sampling=Sampling(max_new_tokens=12))
    assert cache_bytes(distiller(told), student, rows=2, columns=20) == real > 0
    mixed = Mixed(student=told, student_fraction=0.5)
    assert cache_bytes(distiller(mixed), student, rows=2, columns=20) == real
    assert cache_bytes(distiller(FromData()), student, rows=2, columns=20) == 0


def test_what_draws_elsewhere_holds_nothing_here_and_is_tried_here():
    student = build_student(StudentSpec(config=config(layers=3)), tokenizer()).eval()
    told = FromStudent(engine=VLLMServer("http://127.0.0.1:9/v1"))
    made = distiller(Mixed(student=told))
    assert cache_bytes(made, student, rows=2, columns=20) == 0
    tried = copy.deepcopy(made)
    drawn_here(tried.answering.rollout)
    assert cache_bytes(made, student, rows=2, columns=20) == 0, "the run itself has changed"
    assert isinstance(tried.answering.rollout.parts[0]._engine, Auto)


def test_the_table_shows_the_moment_that_needs_the_most(tiny_teacher):
    machine = Machine(device="cpu")
    teacher = LocalTeacher(tiny_teacher)
    totals = []
    for new in (4, 60_000):
        told = FromStudent(n=8, sampling=Sampling(max_new_tokens=new))
        made = Distiller(
            StudentSpec(
                config=config(layers=3, max_position_embeddings=2**17), tokenizer=tiny_teacher
            ),
            ReverseKL(), teacher, rollout=told,
        )  # fmt: skip
        found = estimate(made, Shape(2, 16), machine, tokenizer())
        totals.append(found.total)
        assert (ROLLOUTS in found.parts) == (new > 4)
        assert ("activations" in found.parts) == (new == 4)
    assert totals[1] > totals[0]
