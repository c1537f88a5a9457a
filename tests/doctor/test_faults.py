"""Every planted fault is found, by the check that it belongs to, before step 0."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from kd_lightning.doctor import patient as patients
from kd_lightning.doctor.findings import Level
from kd_lightning.doctor.machine import Machine
from kd_lightning.models.demo import TEMPLATE
from kd_lightning.models.loading import load_tokenizer, resolve
from kd_lightning.models.spec import StudentSpec
from kd_lightning.reliability.keeper import Keeper
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Signal
from tests.doctor.kit import ROWS, looked_at, patient, report, rows_file, said
from tests.tiny import config


def teacher_with(folder: Path, change) -> LocalTeacher:
    """The demo teacher with other weights."""
    copy = folder / "teacher"
    shutil.copytree(resolve("demo"), copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return LocalTeacher(str(copy), dtype="float32")


def tokenizer_with(folder: Path, **changes) -> str:
    made = load_tokenizer("demo")
    for name, value in changes.items():
        setattr(made, name, value)
    made.save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def other_map(folder, monkeypatch):
    """Two bytes have changed places."""
    path = Path(tokenizer_with(folder)) / "tokenizer.json"
    told = json.loads(path.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(told))
    return patient(folder, spec={"tokenizer": str(path.parent)})


def never_ends(folder, monkeypatch):
    """The template ends an answer with a token at which generation does not stop."""
    path = folder / "template.jinja"
    path.write_text(TEMPLATE.replace("message['content'] + '<|end|>'", "message['content'] + '<|tool|>'"))  # noqa: E501  # fmt: skip
    return patient(folder, template=str(path))


def other_end(folder, monkeypatch):
    """The student's tokenizer ends answers with another token than the teacher's."""
    return patient(folder, spec={"tokenizer": tokenizer_with(folder, eos_token="<|pad|>")})


def empty_mask(folder, monkeypatch):
    """The template's marks enclose nothing."""
    path = folder / "template.jinja"
    inside = "{{ message['content'] + '<|end|>' }}"
    marked = "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    assert marked in TEMPLATE
    path.write_text(TEMPLATE.replace(marked, "{% generation %}{% endgeneration %}" + inside))
    return patient(folder, template=str(path))


def pad_is_a_letter(folder, monkeypatch):
    return patient(folder, spec={"tokenizer": tokenizer_with(folder, pad_token="a")})


def all_too_long(folder, monkeypatch):
    return patient(folder, max_length=8, truncation="drop")


def too_long_is_an_error(folder, monkeypatch):
    return patient(folder, max_length=16)


def no_file(folder, monkeypatch):
    return patient(folder, path=folder / "nowhere.jsonl")


def broken_line(folder, monkeypatch):
    path = rows_file(folder)
    path.write_text(path.read_text() + '{"instruction": "Reverse\n')
    return patient(folder, path=path)


def other_columns(folder, monkeypatch):
    return patient(folder, path=rows_file(folder, [{"a": "1", "b": "2"}] * 8))


def small_vocabulary(folder, monkeypatch):
    return patient(folder, spec={"config": config(vocab_size=100, max_position_embeddings=256)})


def random_teacher(folder, monkeypatch):
    def shuffle(weights):
        torch.manual_seed(0)
        for name, w in weights.items():
            weights[name] = torch.randn_like(w) * w.std()

    return patient(folder, teacher=teacher_with(folder, shuffle))


def damaged_teacher(folder, monkeypatch):
    def damage(weights):
        weights[min(weights)][0] = float("nan")

    return patient(folder, teacher=teacher_with(folder, damage))


def frozen(folder, monkeypatch):
    build = patients.build_student
    monkeypatch.setattr(
        patients, "build_student", lambda *a, **k: build(*a, **k).requires_grad_(False)
    )
    return patient(folder)


def stands_still(folder, monkeypatch):
    return patient(folder, lr=0.0)


class Silent(Teacher):
    """Gives text only."""

    offers = frozenset({Signal.TEXT})
    name = "silent"

    @property
    def tokenizer(self):
        return None

    def materialize(self, device):
        pass


def teacher_has_no_logits(folder, monkeypatch):
    return patient(folder, teacher=Silent())


def full_disk(folder, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return patient(folder, callbacks=[Keeper()])


def no_folder(folder, monkeypatch):
    (folder / "a_file").write_text("")
    return patient(folder, run=folder / "a_file/run")


def there_already(folder, monkeypatch):
    (folder / "run").mkdir()
    (folder / "run/config.yaml").write_text("")
    return patient(folder)


def explodes(folder, monkeypatch):
    return patient(folder, lr=1e30)


def few_positions(folder, monkeypatch):
    return patient(folder, spec={"config": config(max_position_embeddings=16)})


def limit_above_positions(folder, monkeypatch):
    return patient(folder, max_length=2048)


def no_room(folder, monkeypatch):
    return patient(folder, machine=Machine(memory=2**20))


def no_model(folder, monkeypatch):
    spec = StudentSpec(path=str(folder / "nothing"), tokenizer="demo")
    return patient(folder, student=spec)


FAULTS = [
    (other_map, "tokenizers", "problem", "mean different tokens by 2 of 262 ids"),
    (never_ends, "template", "problem", "generation stops only at '<|end|>'"),
    (other_end, "tokenizers", "warning", "the teacher's '<|end|>': they end answers"),
    (empty_mask, "template", "problem", "the mask of the answers is all zero"),
    (pad_is_a_letter, "tokenizers", "warning", "stands inside 4 of 6"),
    (all_too_long, "lengths", "problem", "no row is left of 6 (6 longer than 8 tokens)"),
    (too_long_is_an_error, "lengths", "problem", "16 are allowed"),
    (no_file, "files", "problem", "nowhere.jsonl does not exist"),
    (broken_line, "files", "problem", "rows.jsonl:9: broken JSON"),
    (other_columns, "files", "problem", "name the right one with --data.columns"),
    (small_vocabulary, "student", "problem", "knows 262 ids and the model has 100 rows"),
    (random_teacher, "teacher", "warning", "as if its weights were random"),
    (damaged_teacher, "teacher", "problem", "log-probabilities of the teacher are not finite"),
    (frozen, "student", "problem", "no weight of the student is trained"),
    (stands_still, "step", "problem", "no weight changed in two steps"),
    (teacher_has_no_logits, "loss", "problem", "ForwardKL needs logits of the teacher"),
    (full_disk, "disk", "problem", "1000 B free"),
    (no_folder, "disk", "problem", "write another folder (--trainer.default_root_dir"),
    (there_already, "disk", "warning", "already holds a run"),
    (explodes, "step", "problem", "lower the learning rate"),
    (few_positions, "lengths", "problem", "the student has 16 positions"),
    (limit_above_positions, "lengths", "warning", "above the student's 256 positions"),
    (no_room, "memory", "problem", "does not fit into 1.0 MiB"),
    (no_model, "student", "problem", "there is no folder"),
]


@pytest.mark.parametrize(
    ("plant", "check", "level", "words"), FAULTS, ids=[f[0].__name__ for f in FAULTS]
)
def test_a_planted_fault_is_named(tmp_path, monkeypatch, plant, check, level, words):
    found = plant(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    earlier = ("files",) if check in ("tokenizers", "template", "lengths") else ()
    checked = looked_at(found, *earlier, check)[check]
    assert words in said(checked, Level(level)), checked
    assert sorted(tmp_path.rglob("*")) == before, "the doctor left something behind"


def test_a_healthy_run_has_nothing_but_an_unknown_licence(tmp_path):
    path = rows_file(tmp_path)
    found, printed = report(patient(tmp_path, path=path))
    assert not found.problems, printed
    assert found.names(Level.WARNING) == ["licence"] and not found.names(Level.SKIPPED)
    assert "the next step is the same, bit for bit" in printed
    assert "«muhgolem" not in printed and "«udugaf<|end|>»" in printed
    verdict = printed.strip().splitlines()[-3:]
    assert verdict[0].startswith("This run will work") and "Start it:" in verdict[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def test_three_rows_are_shown_and_what_is_learned_is_green(tmp_path):
    _, printed = report(patient(tmp_path), color_system="standard", force_terminal=True)
    learned = re.findall(r"\x1b\[1;32m(\w+<\|end\|>)", printed)
    assert len(learned) == 3 and set(learned) <= {f"{row['output']}<|end|>" for row in ROWS}
    assert "green: learned" in printed and "«" not in printed


def test_a_fault_leaves_the_other_checks_standing(tmp_path, monkeypatch):
    found, printed = report(no_file(tmp_path, monkeypatch))
    assert found.names(Level.PROBLEM) == ["files"]
    assert {"tokenizers", "step", "checkpoint"} <= set(found.names(Level.SKIPPED))
    assert {"loss", "attention", "memory", "disk", "student"} <= set(found.names(Level.OK))
    told = [f.text for checked in found.checked for f in checked.findings]
    assert sum("nowhere.jsonl does not exist" in text for text in told) == 1
    assert "Traceback" not in printed
    assert "This run would fail: 1 problem (files)" in printed


def test_a_check_that_breaks_is_a_finding(tmp_path):
    def breaks(_):
        yield from ()
        raise RuntimeError("no such thing\nat all")

    from kd_lightning.doctor.examine import make

    checked = make("odd", breaks, patient(tmp_path))
    assert said(checked, Level.PROBLEM) == "RuntimeError: no such thing"


def test_rows_are_enough(tmp_path):
    assert len(ROWS) == 8 and len(FAULTS) >= 12
