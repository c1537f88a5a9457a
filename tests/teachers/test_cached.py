"""A cached teacher teaches what the live one does, and refuses what it does not know."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import kd_lightning.losses as losses
from kd_lightning.cli import main
from kd_lightning.data.mixture import Mixture, Part
from kd_lightning.data.skills.plain_text import PlainText
from kd_lightning.errors import KDError
from kd_lightning.losses.weighted import Term
from kd_lightning.models.heads import LinearHead
from kd_lightning.teachers.cached import CachedTeacher
from kd_lightning.types import ModelOutput, Signal
from tests.cache.kit import CPU, Toy, batch, ready, rows, twins, written
from tests.conftest import ROOT
from tests.data.kit import Echo, numbers, write
from tests.tiny import tokenizer

LOGITS = frozenset({Signal.LOGITS})


@pytest.fixture
def data(tmp_path):
    return rows(tmp_path / "data", 16)


def cached(folder, **how) -> CachedTeacher:
    teacher = CachedTeacher(str(folder), **how)
    teacher.materialize(CPU)
    return teacher


class Student:
    """Hidden states and a head of their own, to see the gradients by both."""

    def __init__(self, rows_of):
        torch.manual_seed(3)
        self.head = nn.Linear(6, 88, bias=False)
        self.states = torch.randn(*rows_of.targets.shape, 6, requires_grad=True)

    def learn(self, loss, teacher, rows_of):
        """The loss's sums, and the gradients."""
        output = ModelOutput(self.states, LinearHead(self.head, 88))
        terms = loss(output, teacher.forward(rows_of, LOGITS), rows_of).terms
        total = torch.stack(list(terms.values())).sum()
        found = torch.autograd.grad(total, [self.states, self.head.weight])
        return total.detach(), *found


def pairs():
    return {
        "forward": losses.ForwardKL(2.0, True),
        "reverse": losses.ReverseKL(),
        "jsd": losses.JensenShannon(),
        "weighted": losses.Weighted(
            {"ce": Term(losses.CrossEntropy(), 0.4), "kl": Term(losses.ForwardKL(2.0), 0.6)}
        ),
    }


@pytest.mark.parametrize("loss", pairs())
@pytest.mark.parametrize(
    ("how", "close"),
    [
        ({"k": 88, "dtype": "float32"}, 1e-5),
        ({"k": 88}, 3e-3),
        ({"kind": "hidden", "dtype": "float32"}, 0),
        ({"kind": "hidden"}, 2e-2),
        ({"kind": "hidden", "dtype": "int8"}, 2e-2),
    ],
    ids=["all ids", "all ids float16", "states", "states bfloat16", "states int8"],
)
def test_everything_kept_is_the_live_teacher(tmp_path, data, loss, how, close):
    written(tmp_path / "cache", data, **how)
    taken = batch(data)
    student, loss = Student(taken), pairs()[loss]
    live = student.learn(loss, Toy(), taken)
    found = student.learn(loss, cached(tmp_path / "cache"), taken)
    for one, two in zip(found, live, strict=True):
        assert (one - two).norm() <= close * two.norm()
        assert two.norm() > 1e-3


@pytest.mark.parametrize("how", [{}, {"kind": "hidden"}, {"kind": "sampled"}])
def test_how_a_batch_is_split_changes_nothing(tmp_path, data, how):
    written(tmp_path / "cache", data, **how)
    teacher, taken = cached(tmp_path / "cache"), batch(data, stop=7)
    student, loss = Student(taken), losses.ForwardKL()
    whole = student.learn(loss, teacher, taken)[0]
    for size in (1, 2, 3):
        total, start = 0.0, 0
        for micro in [*taken.split(rows=size), taken.masked()]:
            part = Student(micro)
            part.head = student.head
            here = student.states.detach()[start : start + len(micro), : micro.targets.shape[1]]
            part.states = here.clone().requires_grad_()
            total += part.learn(loss, teacher, micro)[0]
            start = (start + len(micro)) % len(taken)
        assert total == pytest.approx(float(whole), rel=1e-5)


def test_twins_find_their_one_row(tmp_path):
    data = twins(tmp_path)
    written(tmp_path / "cache", data)
    taken = batch(data, stop=4)
    found = cached(tmp_path / "cache").forward(taken, LOGITS).sparse
    half = len(found.ids) // 2
    assert len(set(taken.keys)) == 2 and torch.equal(found.logits[:half], found.logits[half:])


def test_windows_of_long_texts_are_rows_of_their_own(tmp_path):
    text = "once upon a time there was a text that did not fit into one row of the data. " * 3
    path = write(tmp_path / "texts.jsonl", [{"text": text + str(i)} for i in range(4)])
    data = ready(PlainText(path, validation_share=0.3, max_length=40))
    written(tmp_path / "cache", data, kind="hidden", dtype="float32")
    teacher = cached(tmp_path / "cache")
    teacher.check_data(data)
    taken = batch(data, stop=9)
    there = taken.weights > 0
    live = Toy().forward(taken, LOGITS).hidden
    assert torch.equal(teacher.forward(taken, LOGITS).hidden[there], live[there])


def test_a_mixture_reads_the_cache_of_its_part_and_the_part_that_of_the_mixture(tmp_path):
    def parts():
        one = numbers(tmp_path / "one.jsonl", 8)
        two = write(tmp_path / "two.jsonl", [{"text": f"a text {i}"} for i in range(8)])
        echo = Echo(one, validation_share=0.25, template="plain")
        return echo, PlainText(two, validation_share=0.25)

    echo, texts = parts()
    mixture = ready(Mixture({"echo": Part(echo, 2.0), "texts": Part(texts)}))
    written(tmp_path / "both", mixture)
    teacher = cached(tmp_path / "both")
    teacher.check_data(mixture)
    for part in (ready(each) for each in parts()):
        teacher.check_data(part)
        assert len(teacher.forward(batch(part), LOGITS).sparse.ids) > 0
    alone = ready(parts()[0])
    written(tmp_path / "one", alone)
    with pytest.raises(KDError, match=r"another chat template|lacks"):
        cached(tmp_path / "one").check_data(mixture)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "made", "loss", "words"),
    [
        ({}, {}, losses.ForwardKL(3.0), r"temperature 3.* holds 1, 2.*--temperatures"),
        ({"temperatures": [4.0]}, {}, losses.ForwardKL(2.0), r"temperature 2.* holds 1, 4"),
        ({"kind": "sampled"}, {}, losses.ReverseKL(), "not linear .*ForwardKL"),
        ({"kind": "sampled"}, {}, losses.ForwardKL(2.0), r"temperature 2.* holds 1"),
        ({"kind": "hidden"}, {"support": "tail"}, losses.ForwardKL(), "kind hidden"),
        ({"kind": "sampled"}, {"support": "unnormalised"}, losses.ForwardKL(), "kind sampled"),
        ({}, {"teacher": "other"}, losses.ForwardKL(), "of the teacher toy, not of other"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused_at_set_up(tmp_path, data, how, made, loss, words):
    written(tmp_path / "cache", data, **how)
    with pytest.raises(KDError, match=words):
        CachedTeacher(str(tmp_path / "cache"), **made).check(loss)


@pytest.mark.parametrize(
    ("how", "loss"),
    [
        ({}, losses.JensenShannon(temperature=2.0)),
        ({"kind": "sampled", "temperatures": [2.0]}, losses.ForwardKL(2.0)),
        ({"kind": "hidden"}, losses.ReverseKL(7.0)),
        ({"kind": "sampled"}, losses.CrossEntropy()),
    ],
)
def test_a_loss_that_fits_is_let_by(tmp_path, data, how, loss):
    written(tmp_path / "cache", data, **how)
    teacher = CachedTeacher(str(tmp_path / "cache"), teacher="toy")
    teacher.check(loss)
    teacher.check_data(data)
    assert teacher.name == "toy" and teacher.offers == LOGITS
    assert teacher.tokenizer.get_vocab() == tokenizer().get_vocab()


def test_support_is_what_was_asked_for(tmp_path, data):
    written(tmp_path / "cache", data)
    teacher = CachedTeacher(str(tmp_path / "cache"), support="both_renormalised")
    teacher.check(losses.ForwardKL())
    assert teacher.forward(batch(data), LOGITS).sparse.support == "both_renormalised"


def test_data_that_do_not_fit_are_refused_and_named(tmp_path, data):
    written(tmp_path / "cache", data)
    teacher = cached(tmp_path / "cache")
    path = tmp_path / "data/rows.jsonl"
    jinja = tmp_path / "own.jinja"
    jinja.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    for changed, words in (
        ({"template": str(jinja)}, "another chat template"),
        ({"template_arguments": {"enable_thinking": False}}, "another chat template"),
        ({"system": "Be brief."}, "lacks 12 of 12 rows of train"),
        ({"validation_share": 0.0, "validation": numbers(tmp_path / "v.jsonl", 20)}, "lacks 4 of"),
        ({"limit_train": 3}, None),
    ):
        told = {"template": "plain", "validation_share": 0.25, **changed}
        other = ready(Echo(str(path), **told))
        if words is None:
            teacher.check_data(other)
        else:
            with pytest.raises(KDError, match=words):
                teacher.check_data(other)
    for change, words in (({"streaming": True}, "streaming=false"), ({}, "another tokenizer")):
        other = Echo(str(path), validation_share=0.25, template="plain")
        other.tokenizer = tokenizer(("<new>",))
        other.setup("fit")
        vars(other).update(change)
        with pytest.raises(KDError, match=words):
            teacher.check_data(other)
    with pytest.raises(KDError, match="needs data of kd_lightning"):
        teacher.check_data(None)


def test_rows_of_a_split_that_was_left_out_are_named(tmp_path, data):
    written(tmp_path / "cache", data, splits=("train",))
    teacher = cached(tmp_path / "cache")
    with pytest.raises(KDError, match=r"rows of validation .*written for train.*--output"):
        teacher.check_data(data)
    taken = batch(data, "validation", stop=2)
    with pytest.raises(KDError, match=rf"does not hold row {taken.ids[0]} .*--splits"):
        teacher.forward(taken, LOGITS)
    with pytest.raises(KDError, match="no row keys"):
        teacher.forward(taken.replace(keys=()), LOGITS)
    with pytest.raises(KDError, match="cannot generate"):
        teacher.complete([[1]], None)


# ---- the command line ----------------------------------------------------------------------------

DEMO = ["-c", str(ROOT / "configs/experiment/demo.yaml")]
CACHED = ["-c", str(ROOT / "configs/method/cached.yaml")]
SMALL = [
    "--data.train_rows=64", "--data.validation_rows=16", "--data.test_rows=16",
    "--data.batch_size=8",
    "--model.answers.max_new_tokens=4", "--trainer.enable_progress_bar=false",
]  # fmt: skip


def losses_of(run) -> list[float]:
    with (run / "metrics.csv").open() as file:
        found = [row.get("train/loss") for row in csv.DictReader(file)]
    return [float(value) for value in found if value]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with a cache of the demo teacher on a few rows."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    assert main(["cache", *DEMO, *SMALL, f"--trainer.default_root_dir={folder}", "--k=16"]) == 0
    return folder


def test_cache_then_fit(run, capsys):
    steps = ["--trainer.max_steps=40", "--trainer.log_every_n_steps=1", "--model.graded_rows=4"]
    place = [f"--trainer.default_root_dir={run}", "--trainer.val_check_interval=20"]
    assert main(["fit", *DEMO, *CACHED, *SMALL, *steps, *place]) == 0
    found = losses_of(run)
    assert sum(found[-5:]) < 0.6 * sum(found[:5])
    told = json.loads((run / "comparison.json").read_text())
    assert list(told["columns"]) == ["student before", "student after"]
    kl = [told["columns"][name]["metrics"]["kl"] for name in told["columns"]]
    assert kl[1] < kl[0]
    assert "`demo`" in (run / "student/README.md").read_text()
    place = [f"--student={run / 'student'}", f"--output={run / 'side'}", "--split=validation"]
    record = ["-c", str(run / "config.yaml")]
    assert main(["evaluate", *record, *place]) == 0
    assert main(["export", *record, f"--output={run / 'again'}"]) == 0
    capsys.readouterr()


def test_damage_ends_in_one_sentence_before_the_first_step(run, tmp_path, capsys):
    path = run / "cache/shard-00000.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + bytes(8))
    told = [f"--model.teacher.path={run / 'cache'}", f"--trainer.default_root_dir={tmp_path}"]
    code = main(["fit", *DEMO, *CACHED, *SMALL, *told])
    path.write_bytes(whole)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and "shard-00000.bin is damaged" in said
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.slow
def test_two_processes_read_one_cache_and_learn_what_one_does(run, tmp_path):
    found = []
    for world in (1, 2):
        folder = tmp_path / str(world)
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc_per_node={world}", "train.py", "fit", *DEMO, *CACHED, *SMALL,
            f"--model.teacher.path={run / 'cache'}", f"--trainer.default_root_dir={folder}",
            "--trainer.max_steps=3", "--trainer.log_every_n_steps=1", "--trainer.callbacks=null",
            f"--trainer.devices={world}", f"--data.batch_size={8 // world}",
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(losses_of(folder))
    assert len(found[0]) == 3 and found[0] == pytest.approx(found[1], rel=1e-5)
