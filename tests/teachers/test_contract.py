"""What every generator promises: it answers each request once, by number, or refuses at set-up."""

from __future__ import annotations

import inspect

import pytest
import torch

import kd_lightning.teachers as teachers
from kd_lightning.errors import KDError
from kd_lightning.models.causal import build_student
from kd_lightning.models.loading import load_tokenizer
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.teachers.generator import Generator, Kind, Reply, Request
from kd_lightning.teachers.rules import Fixed
from kd_lightning.types import Prompt, Sampling

ELSEWHERE = {"ServerTeacher", "MovingAverage", "Privileged"}
"""Need a server, or a student in training: they are tested where those are."""


class Liked(Fixed):
    """Likes short texts."""

    scores = True

    def logprob(self, prompt: str, text: str) -> float:
        return -float(len(text))


def adapted(path: str):
    """A student whose adapters say something else than its weights."""
    spec = StudentSpec(path=path, lora=LoraSpec(rank=2, targets=["q_proj", "v_proj"]))
    student = build_student(spec, load_tokenizer(path))
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(3.0)
    return student


def adapters_off(path: str, folder) -> Generator:
    made = teachers.AdapterOff()
    made.attach(adapted(path))
    return made


def scripted(**more) -> Generator:
    return teachers.Scripted(Liked({".": "so it is"}), **more)


MADE = {
    "LocalTeacher": lambda path, folder: teachers.LocalTeacher(path, device="cpu"),
    "AdapterOff": adapters_off,
    "CachedTeacher": lambda path, folder: teachers.CachedTeacher(str(folder)),
    "Student": lambda path, folder: teachers.Student(path, device="cpu"),
    "Ensemble": lambda path, folder: teachers.Ensemble([scripted(name="a"), scripted(name="b")]),
    "Replay": lambda path, folder: teachers.Replay(str(folder / "record"), scripted()),
    "Scripted": lambda path, folder: scripted(),
}
PROMPTS = [Prompt.user("abc"), Prompt.text("def"), Prompt.user("ghi", system="be kind")]
REQUESTS = {
    Kind.GENERATE: [Request(Kind.GENERATE, p, Sampling(4, 1.0), n=2) for p in PROMPTS],
    Kind.SCORE: [Request(Kind.SCORE, p, texts=("one", "three")) for p in PROMPTS],
    Kind.CHOICES: [Request(Kind.CHOICES, p, texts=("a", "b", "abc")) for p in PROMPTS],
}


def test_no_generator_is_forgotten():
    assert set(MADE) | ELSEWHERE == set(teachers.__all__)
    for name in teachers.__all__:
        assert not inspect.isabstract(getattr(teachers, name))


def well_formed(request: Request, reply: Reply) -> bool:
    if request.kind is Kind.GENERATE:
        return len(reply.completions) == request.n
    if request.kind is Kind.CHOICES:
        return len(reply.choices) == len(request.texts) and max(reply.choices) <= 0
    even = all(len(s.tokens) == len(s.logprobs) and s.total <= 0 for s in reply.scores)
    return even and len(reply.scores) == len(request.texts)


@pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.FORWARD])
@pytest.mark.parametrize("name", MADE)
def test_each_request_is_answered_once_or_its_kind_is_refused(name, kind, tiny_teacher, tmp_path):
    generator = MADE[name](tiny_teacher, tmp_path)
    if kind.needs not in generator.offers:
        with pytest.raises(KDError, match=f"the test needs .*{name}"):
            generator.require([kind], "the test")
        return
    generator.require([kind], "the test")
    requests = REQUESTS[kind]
    told = [pair for done in generator.replies(iter(requests)) for pair in done]
    assert sorted(number for number, _ in told) == list(range(len(requests)))
    replies = dict(told)
    assert all(well_formed(r, replies[i]) for i, r in enumerate(requests))
    back = generator.ask(requests[::-1])[::-1]
    for i, reply in enumerate(back):
        assert reply.completions == replies[i].completions
        assert reply.choices == pytest.approx(replies[i].choices, abs=1e-4)
    assert all(reply.usage.prompt_tokens > 0 for reply in back)
    assert all(Reply.from_json(reply.as_json()) == reply for reply in back)
    assert generator.identity == generator.identity and generator.identity.startswith(name)
    generator.close()


def test_nothing_is_read_when_a_generator_is_made(tmp_path):
    gone = str(tmp_path / "gone")
    teachers.LocalTeacher(gone)
    teachers.CachedTeacher(gone)
    teachers.Student(gone)
    teachers.Ensemble([teachers.Replay(gone, mode="replay"), teachers.LocalTeacher(gone)])


def test_without_its_adapters_the_student_speaks_like_its_weights(tiny_teacher):
    student = adapted(tiny_teacher)
    off, with_them = teachers.AdapterOff(), teachers.Student.live(student)
    off.attach(student)
    base = teachers.LocalTeacher(tiny_teacher, device="cpu")
    sampling = Sampling(8, temperature=1.0)
    before = with_them.generate(PROMPTS, 1, sampling)
    for _ in off.replies(REQUESTS[Kind.GENERATE]):  # between two batches they are in place
        assert with_them.generate(PROMPTS, 1, sampling) == before
    assert off.generate(PROMPTS, 1, sampling) == base.generate(PROMPTS, 1, sampling) != before
