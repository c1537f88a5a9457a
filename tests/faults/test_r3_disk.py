"""R3, R4: a full disk and damaged files cost the newest checkpoint at most."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import shutil
from collections import namedtuple

import pytest
import torch

from kd_lightning.cli import main
from kd_lightning.errors import KDError
from kd_lightning.reliability import commit
from kd_lightning.reliability.checkpoint_io import VerifiedIO, _Summing, plain, read
from kd_lightning.reliability.keeper import sums_of

Usage = namedtuple("Usage", "total used free")


def state(value: float = 1.0, step: int = 1) -> dict:
    return {"global_step": step, "state_dict": {"w": torch.full((500, 500), float(value))}}


def written(folder, *steps, asynchronous=False):
    io = VerifiedIO(asynchronous)
    for step in steps:
        io.save_checkpoint(state(step, step), folder / f"step{step:06d}.ckpt")
    io.teardown()
    return io


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_written_is_whole_and_read_back(tmp_path, asynchronous):
    io = VerifiedIO(asynchronous)
    held = state(3.0, 3)
    io.save_checkpoint(held, tmp_path / "step000003.ckpt")
    held["state_dict"]["w"].zero_()  # training goes on while it is written
    io.wait()
    found = read(tmp_path / "step000003.ckpt")
    assert asynchronous is False or float(found["state_dict"]["w"].mean()) == 3.0
    assert commit.problem(tmp_path / "step000003.ckpt") is None
    assert {p.name for p in tmp_path.iterdir()} == {
        "step000003.ckpt", "step000003.ckpt.manifest.json",
    }  # fmt: skip


def test_r3_no_space_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    written(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(KDError, match=r"5,000 bytes are free and 1,000,000 are needed"):
        written(tmp_path, 2)
    assert commit.newest(tmp_path).step == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_r3_the_disk_fills_while_it_is_written(tmp_path, monkeypatch, asynchronous):
    written(tmp_path, 1)
    before = (tmp_path / "step000001.ckpt").read_bytes()

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_Summing, "write", full)
    io = VerifiedIO(asynchronous)
    with pytest.raises(KDError, match=r"bytes are free and 1,000,000 are needed.*untouched"):
        io.save_checkpoint(state(2, 2), tmp_path / "step000002.ckpt")
        io.wait()
    assert commit.newest(tmp_path).step == 1
    assert (tmp_path / "step000001.ckpt").read_bytes() == before
    assert not list(tmp_path.glob(".writing-*"))


def test_r3_a_limit_of_the_system(tmp_path):
    """RLIMIT_FSIZE: the system itself refuses the write."""
    written(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(KDError, match=r"no space .*bytes are free and 1,000,000 are needed"):
            written(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert commit.newest(tmp_path).step == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_r3_one_of_two_processes_cannot_write_its_shard(victims, tmp_path, tiny_teacher, rank):
    """Both end, in one sentence each; the former checkpoint stays, and is gone on from."""
    job = {"teacher": tiny_teacher, "strategy": "fsdp", "steps": 4, "every": 2}
    folder = tmp_path / "run"
    codes = victims.pair(folder, rank=rank, limit_at=2, limit=9_000, **job)
    told = [(folder / f"said-{r}.txt").read_text() for r in (0, 1)]
    assert codes == [1, 1], told
    for text in told:
        assert "no space for the checkpoint" in text and "step000004.ckpt: " in text
    (left,) = commit.committed(folder / "checkpoints")
    assert left.step == 2 and commit.problem(left.path) is None
    assert not list((folder / "checkpoints").glob(".writing-*"))
    assert victims.pair(folder, **job) == [0, 0]
    assert commit.newest(folder / "checkpoints").step == 4


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_r4_a_flipped_bit_is_found_and_the_one_before_taken(tmp_path, caplog, place):
    written(tmp_path, 1, 2)
    path = tmp_path / "step000002.ckpt"
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(KDError, match=r"damaged: .*checksum"):
        read(path)
    assert commit.newest(tmp_path).step == 1
    assert "step000002.ckpt is damaged and passed over" in caplog.text


def test_r4_cut_missing_and_unfinished(tmp_path, caplog):
    written(tmp_path, 1, 2, 3, 4)
    cut = tmp_path / "step000004.ckpt"
    cut.write_bytes(cut.read_bytes()[:-1000])
    commit.manifest_of(tmp_path / "step000003.ckpt").unlink()
    commit.manifest_of(tmp_path / "step000002.ckpt").write_text("{")
    assert commit.newest(tmp_path).step == 1
    for name, why in ((4, "bytes and had"), (3, "never finished"), (2, "manifest cannot be read")):
        assert f"step00000{name}" in caplog.text and why in caplog.text


def test_r4_a_folder_of_shards(tmp_path):
    def made(step):
        target = tmp_path / f"step{step:06d}.ckpt"
        aside = commit.temporary(target)
        (aside / "inner").mkdir(parents=True)
        for name in (".metadata", "__0_0.distcp", "inner/meta.pt"):
            (aside / name).write_bytes(bytes(range(256)) * step)
        commit.publish(aside, target, step, {})
        return target

    one, two = made(1), made(2)
    assert commit.problem(two) is None and commit.newest(tmp_path).step == 2
    made(2)  # replaced as a whole
    assert commit.problem(two) is None
    for name in (".metadata", "__0_0.distcp", "inner/meta.pt"):
        before = (two / name).read_bytes()
        (two / name).write_bytes(before[:-1] + b"!")
        assert name in commit.problem(two) and commit.newest(tmp_path).path == one
        (two / name).write_bytes(before)
    (two / "extra.pt").touch()
    assert "extra.pt is not in its manifest" in commit.problem(two)


def test_r4_each_process_sums_its_own_shards(tmp_path, monkeypatch):
    target = tmp_path / "step000001.ckpt"
    aside = commit.temporary(target)
    aside.mkdir()
    for name in ("__0_0.distcp", "__1_0.distcp", "__1_1.distcp", "__10_0.distcp", "meta.pt"):
        (aside / name).write_bytes(name.encode())
    sums = sums_of(aside, 1)
    assert set(sums) == {"__1_0.distcp", "__1_1.distcp"}
    sums |= sums_of(aside, 0) | sums_of(aside, 10)
    read = []
    monkeypatch.setattr(commit, "checksum_of", lambda path: read.append(path.name) or "0")
    commit.publish(aside, target, 1, sums)
    assert read == ["meta.pt"]  # the rest, by the process that commits
    assert "meta.pt has changed" in commit.problem(target)


def test_r4_checkpoints_with_sha256_are_still_verified(tmp_path):
    written(tmp_path, 1)
    path = tmp_path / "step000001.ckpt"
    told = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    commit.manifest_of(path).write_text(json.dumps({"step": 1, "files": {path.name: told}}))
    assert commit.problem(path) is None
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert "checksum" in commit.problem(path)


def folder_of_shards(place, step):
    """A checkpoint as several processes write it."""
    target = place / f"step{step:06d}.ckpt"
    aside = commit.temporary(target)
    aside.mkdir()
    (aside / "__0_0.distcp").write_bytes(bytes([step]) * 1000)
    commit.publish(aside, target, step, {})
    return target


def test_r2_killed_while_a_link_is_renewed(tmp_path):
    """What is left is a link to a good checkpoint: only the link is taken away."""
    made = folder_of_shards(tmp_path, 2)
    (tmp_path / f"{commit.UNFINISHED}last.ckpt").symlink_to(made.name)
    commit.clear(tmp_path)
    assert commit.problem(made) is None and commit.newest(tmp_path).step == 2
    assert [path.name for path in tmp_path.iterdir()] == [made.name]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_r2_killed_while_an_old_one_is_deleted(tmp_path, monkeypatch, kind):
    """Its space is given back at the next start."""

    class KilledError(Exception):
        pass

    def kill(*args, **kwargs):
        raise KilledError

    for step in (1, 2):
        written(tmp_path, step) if kind == "file" else folder_of_shards(tmp_path, step)
    kept = {path.name for path in tmp_path.iterdir() if "000002" in path.name}
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(shutil, "rmtree", kill)
        patched.setattr(type(tmp_path), "unlink", kill)
        commit.remove(tmp_path / "step000001.ckpt")
    assert not (tmp_path / "step000001.ckpt").exists()
    assert commit.newest(tmp_path).step == 2
    commit.clear(tmp_path)
    commit.remove(tmp_path / "step000001.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_mixture_of_two_saves_is_never_whole(tmp_path):
    """The former data under the new manifest: what a crash between two renames leaves."""
    written(tmp_path / "a", 1)
    path = tmp_path / "a/step000001.ckpt"
    old = path.read_bytes()
    VerifiedIO().save_checkpoint(state(7.0, 1), path)
    assert commit.problem(path) is None and read(path)["state_dict"]["w"][0, 0] == 7
    path.write_bytes(old)
    assert "checksum" in commit.problem(path)


def test_only_tensors_and_plain_data(tmp_path):
    class Odd:
        pass

    with pytest.raises(KDError, match=r"callbacks\.mine is a Odd"):
        VerifiedIO().save_checkpoint({"callbacks": {"mine": Odd()}}, tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())
    shared = torch.ones(3)
    copy = plain({"a": shared, "b": [shared, (1, "x", None)]}, copy=True)
    assert copy["a"] is copy["b"][0] and copy["a"] is not shared and copy["b"][1] == (1, "x", None)


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "x.ckpt")
    with pytest.raises(KDError, match="more than tensors and plain data"):
        read(tmp_path / "x.ckpt")
    assert not (tmp_path / "ran").exists()


def test_verify_command(tmp_path, capsys):
    written(tmp_path / "run/checkpoints", 1, 2)
    assert main(["checkpoint", "verify", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count(": whole") == 2
    path = tmp_path / "run/checkpoints/step000002.ckpt"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["checkpoint", "verify", str(path)]) == 1
    assert "bytes and had" in capsys.readouterr().out
    assert main(["checkpoint", "verify", str(tmp_path / "no")]) == 2
    assert main(["checkpoint"]) == 2
