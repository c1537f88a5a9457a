"""Interrupted anywhere and started again: the same bytes. And never two at once."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest

from kd_lightning import files
from kd_lightning.cache import plan
from kd_lightning.cache.manifest import Manifest
from kd_lightning.errors import KDError
from tests.cache.kit import Toy, content, rows, twins, written

HOW = [
    {"kind": "topk"},
    {"kind": "sampled", "draws": 20, "shard_megabytes": 0.0008},
    {"kind": "hidden", "dtype": "int8"},
]


def killed(folder, data, die, **wish) -> bool:
    """Write in a process of its own that `die` prepares; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            die()
            written(folder, data, **wish)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def at_call(number: int):
    """Die at the n-th time that something is flushed or moved: before it, or just after."""

    def prepare():
        calls = itertools.count()

        def deadly(function):
            def wrapped(*args):
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                done = function(*args)
                if next(calls) == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return wrapped

        os.fsync, Path.replace = deadly(os.fsync), deadly(Path.replace)

    return prepare


@pytest.mark.parametrize("how", HOW, ids=lambda how: how["kind"])
def test_killed_at_every_point_ends_with_the_bytes_of_an_undisturbed_run(tmp_path, how):
    data = rows(tmp_path / "data", 10)
    written(tmp_path / "whole", data, **how)
    whole = content(tmp_path / "whole")
    assert len([name for name in whole if name.startswith("shard")]) >= 3
    deaths = 0
    for number in itertools.count(0, 5):
        folder = tmp_path / f"at-{number}"
        if not killed(folder, data, at_call(number), **how):
            break
        deaths += 1
        assert content(folder) != whole or number > 20  # the last flushes change nothing
        written(folder, data, **how)
        assert content(folder) == whole, number
    assert deaths >= 5


def test_killed_again_and_again_at_random_moments(tmp_path):
    data = rows(tmp_path / "data", 24)
    how = {"kind": "sampled", "draws": 300}
    begun = time.monotonic()
    written(tmp_path / "whole", data, **how)
    took, chance, folder = time.monotonic() - begun, random.Random(1), tmp_path / "cut"
    for _ in range(6):
        child = os.fork()
        if child == 0:
            try:
                written(folder, data, **how)
            finally:
                os._exit(0)
        time.sleep(chance.random() * took)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    written(folder, data, **how)
    assert content(folder) == content(tmp_path / "whole")


def test_what_stands_is_not_computed_again(tmp_path):
    data, toy = rows(tmp_path / "data"), Toy()
    written(tmp_path / "cache", data, toy)
    asked = []
    forward = toy.forward
    toy.forward = lambda batch, needs: (asked.append(len(batch)), forward(batch, needs))[1]
    written(tmp_path / "cache", data, toy)
    assert asked == [1]  # to learn the teacher's shape
    (tmp_path / "cache/shard-00001.bin").unlink()
    written(tmp_path / "cache", data, toy)
    mine = Manifest.read(tmp_path / "cache").shards[1]
    assert sum(asked) == 2 + mine.rows


def test_damage_is_repaired(tmp_path):
    data = rows(tmp_path / "data")
    written(tmp_path / "cache", data)
    whole = content(tmp_path / "cache")
    path = tmp_path / "cache/shard-00000.bin"
    held = bytearray(path.read_bytes())
    held[-3] ^= 1
    path.write_bytes(held)
    (tmp_path / "cache/tokenizer/tokenizer.json").write_text("{}")
    written(tmp_path / "cache", data)
    assert content(tmp_path / "cache") == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "hidden"}, "kind"),
        ({"k": 9}, "settings"),
        ({"temperatures": [1.0, 4.0]}, "settings"),
        ({"dtype": "float32"}, "settings"),
        ({"teacher": Toy(seed=1)}, "teacher"),
        ({"splits": ("train",)}, "data"),
        ({"shard_megabytes": 0.0006}, "planned"),
        ({"batch_tokens": 65}, "planned"),
    ],
)
def test_a_folder_is_not_filled_up_with_other_things(tmp_path, change, named):
    data = rows(tmp_path / "data")
    written(tmp_path / "cache", data)
    before = content(tmp_path / "cache")
    with pytest.raises(KDError, match=f"another {named} .*--output"):
        written(tmp_path / "cache", data, **change)
    for name, held in content(tmp_path / "cache").items():
        assert name == "head.safetensors" or before[name] == held


def test_other_rows_are_named(tmp_path):
    written(tmp_path / "cache", rows(tmp_path / "data"))
    with pytest.raises(KDError, match="another data"):
        written(tmp_path / "cache", rows(tmp_path / "other", 13))


def test_two_writers_do_not_share_a_folder(tmp_path):
    data = rows(tmp_path / "data")
    with files.only_writer(tmp_path / "cache"), pytest.raises(KDError, match="another process"):
        written(tmp_path / "cache", data)
    written(tmp_path / "cache", data)


def test_twins_are_stored_once(tmp_path):
    data = twins(tmp_path)
    manifest = written(tmp_path / "cache", data)
    assert manifest.planned["rows"] == 2
    assert manifest.data["splits"]["train"]["rows"] == 4


def test_batches_and_files_are_functions_of_the_rows(tmp_path):
    kept = plan.unique([rows(tmp_path / "data").encoded("train")])
    pieces = plan.shards(kept, 12)
    assert [row for piece in pieces for row in piece] == kept
    assert all(sum(r.answered for r in p) <= 12 or len(p) == 1 for p in pieces)
    batches = plan.batches(kept, 60)
    assert sorted(i for b in batches for i in b) == list(range(len(kept)))
    assert all(len(b) * (max(len(kept[i]) for i in b) - 1) <= 60 or len(b) == 1 for b in batches)


def test_streamed_rows_are_refused(tmp_path):
    data = rows(tmp_path / "data")
    data.streaming = True
    with pytest.raises(KDError, match="streaming=false"):
        written(tmp_path / "cache", data)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"dtype": "int8"}, "float16"),
        ({"kind": "hidden", "dtype": "float16"}, "bfloat16"),
        ({"k": 0}, "--k"),
        ({"temperatures": [0.0]}, "--temperatures"),
        ({"kind": "sampled", "temperatures": [1.0, 2.0]}, "one temperature"),
        ({"kind": "sampled", "draws": 0}, "--draws"),
        ({"kind": "sampled", "proposal": 0.0}, "--proposal"),
    ],
)
def test_wrong_wishes_are_named(tmp_path, wish, words):
    with pytest.raises(KDError, match=words):
        written(tmp_path / "cache", rows(tmp_path / "data"), **wish)
