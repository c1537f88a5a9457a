"""Cut, damaged or missing files are found before anything is learned from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kd_lightning.cache import layout
from kd_lightning.cache.manifest import Manifest
from kd_lightning.cache.reader import Reader
from kd_lightning.errors import KDError
from kd_lightning.teachers.cached import CachedTeacher
from tests.cache.kit import CPU, batch, rows, written

KINDS = [{"kind": "topk"}, {"kind": "sampled", "draws": 30}, {"kind": "hidden", "dtype": "int8"}]


@pytest.fixture
def data(tmp_path):
    return rows(tmp_path / "data", 16)


def flip(path, place):
    held = bytearray(path.read_bytes())
    held[place] ^= 0x10
    path.write_bytes(held)


def planes_of(folder):
    """Name and first byte of every plane of the first file."""
    reader = Reader(folder)
    found = layout.places(reader.kind.planes, reader.manifest.shards[0].counts)
    return {name: place.offset for name, place in found.items() if place.end > place.offset}


@pytest.mark.parametrize("verify", ["open", "first_use"])
@pytest.mark.parametrize("how", KINDS, ids=lambda how: how["kind"])
def test_a_flipped_bit_in_any_plane_is_found_before_a_step(tmp_path, data, how, verify):
    written(tmp_path / "cache", data, **how)
    path = tmp_path / "cache/shard-00000.bin"
    whole = path.read_bytes()
    places = planes_of(tmp_path / "cache")
    assert len(places) >= 6
    for name, place in places.items():
        flip(path, place)
        teacher = CachedTeacher(str(tmp_path / "cache"), verify=verify)
        with pytest.raises(KDError, match=r"shard-00000.bin is damaged.*repairs"):
            teacher.check_data(data)
            teacher.materialize(CPU)
            assert verify == "first_use", name
            teacher.forward(batch(data), frozenset())
        path.write_bytes(whole)
    CachedTeacher(str(tmp_path / "cache"), verify=verify).check_data(data)


@pytest.mark.parametrize("file", ["manifest.json", "head.safetensors", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_beside_the_shards_is_found(tmp_path, data, file):
    written(tmp_path / "cache", data, kind="hidden")
    flip(tmp_path / "cache" / file, 100)
    with pytest.raises(KDError, match=f"{file} is damaged"):
        CachedTeacher(str(tmp_path / "cache")).check_data(data)


@pytest.mark.parametrize("left", [0, 1, 0.5, -1])
def test_a_cut_file_is_found_at_once(tmp_path, data, left):
    written(tmp_path / "cache", data)
    path = tmp_path / "cache/shard-00001.bin"
    held = path.read_bytes()
    path.write_bytes(held[: int(left * len(held)) if isinstance(left, float) else left])
    for verify in ("open", "first_use", "size"):
        with pytest.raises(KDError, match=r"shard-00001.bin is cut: it has .* bytes"):
            CachedTeacher(str(tmp_path / "cache"), verify=verify).check_data(data)


def test_a_missing_file_and_an_unfinished_cache_are_named(tmp_path, data):
    written(tmp_path / "cache", data)
    manifest = Manifest.read(tmp_path / "cache")
    (tmp_path / "cache/shard-00001.bin").rename(tmp_path / "away")
    with pytest.raises(KDError, match=r"lacks .*shard-00001.bin.*again"):
        Reader(tmp_path / "cache")
    manifest.shards = manifest.shards[:1]
    manifest.write(tmp_path / "cache")
    with pytest.raises(KDError, match=r"not finished \(1 of .*goes on"):
        Reader(tmp_path / "cache")


def test_no_cache_another_format_and_garbage_are_named(tmp_path, data):
    (tmp_path / "empty").mkdir()
    with pytest.raises(KDError, match=r"train.py cache"):
        CachedTeacher(str(tmp_path / "nowhere")).check_data(data)
    with pytest.raises(KDError, match="holds no teacher's cache"):
        Reader(tmp_path / "empty")
    written(tmp_path / "cache", data)
    path = tmp_path / "cache/manifest.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "version": 99}))
    with pytest.raises(KDError, match="format 99"):
        Reader(tmp_path / "cache")
    path.write_text(json.dumps({**told, "vocab": told["vocab"] + 1}))
    with pytest.raises(KDError, match="is damaged"):
        Reader(tmp_path / "cache")
    path.write_text("[]")
    with pytest.raises(KDError, match="is damaged"):
        Reader(tmp_path / "cache")


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how["kind"])
def test_random_reads_are_parts_of_the_sequential_one(tmp_path, data, how):
    written(tmp_path / "cache", data, **how)
    reader = Reader(tmp_path / "cache")
    keys = [row.key for row in data.encoded("train")]
    found = reader.find(keys)
    assert sorted(found.tolist()) == list(range(len(keys)))
    assert reader.find([b"0" * 16, keys[0]]).tolist() == [-1, found[0]]
    assert len(reader.shards(found)) > 1
    whole = reader.read(found)
    order = np.random.default_rng(0).permutation(len(found))
    mixed = reader.read(found[order])
    tokens = reader.tokens(found)
    ends = tokens.cumsum()
    for name in [p.name for p in reader.kind.planes if p.per == "token"]:
        expected = [whole[name][ends[i] - tokens[i] : ends[i]] for i in order]
        assert np.array_equal(np.concatenate(expected), mixed[name])


def test_nothing_counted_reads_nothing(tmp_path, data):
    for how in KINDS:
        folder = tmp_path / how["kind"]
        written(folder, data, **how)
        teacher = CachedTeacher(str(folder))
        teacher.materialize(CPU)
        found = teacher.forward(batch(data).masked(), frozenset())
        if found.sparse is not None:
            assert found.sparse.ids.shape[0] == 0 and found.sparse.lse[1.0].shape == (0,)
        else:
            assert torch.equal(found.hidden, torch.zeros_like(found.hidden))
