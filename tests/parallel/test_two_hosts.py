"""Two hosts, made as network namespaces on this machine; the link between them is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

HOSTS = ("a", "b")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def name(host: str) -> str:
    return f"kd{os.getpid()}{host}"


def remove() -> None:
    for host in HOSTS:
        subprocess.run(["ip", "netns", "del", name(host)], capture_output=True, timeout=20)


@pytest.fixture
def link():
    """A pair of hosts, 10.231.7.1 and .2, with one cable."""
    if shutil.which("ip") is None:
        pytest.skip("no network namespaces: `ip` (iproute2) is not installed")
    try:
        for host in HOSTS:
            ip("netns", "add", name(host))
        ip("link", "add", name("a"), "type", "veth", "peer", "name", name("b"))
        for number, host in enumerate(HOSTS, 1):
            ip("link", "set", name(host), "netns", name(host))
            ip("-n", name(host), "addr", "add", f"10.231.7.{number}/24", "dev", name(host))
            ip("-n", name(host), "link", "set", "lo", "up")
            ip("-n", name(host), "link", "set", name(host), "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"no network namespaces: {error.stderr.decode().strip()}")
    yield
    remove()


def start(folder, host: str, rank: int, steps: int) -> subprocess.Popen[bytes]:
    """The run's part on one host."""
    command = [
        "ip", "netns", "exec", name(host), sys.executable, "-m", "torch.distributed.run",
        "--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}", "--max_restarts=0",
        "--master_addr=10.231.7.1", "--master_port=29511",
        "train.py", "fit", "-c", "configs/experiment/demo.yaml",
        "--trainer=configs/trainer/fsdp.yaml", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.num_nodes=2", "--trainer.precision=32-true", "--trainer.logger=false",
        f"--trainer.callbacks={folder / 'callbacks.yaml'}", f"--trainer.max_steps={steps}",
        f"--trainer.default_root_dir={folder / 'run'}", "--trainer.limit_val_batches=0",
        "--trainer.val_check_interval=null", "--trainer.check_val_every_n_epoch=1",
        "--data.train_rows=100", "--data.batch_size=4", "--data.validation_rows=5",
        "--data.test_rows=5", "--resume=auto",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": name(host)}
    log = (folder / f"{host}.txt").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def saved(folder) -> list[str]:
    return sorted(p.parent.name for p in (folder / "run").glob("checkpoints/step*/manifest.json"))


@pytest.mark.slow
def test_a_cut_link_ends_both_hosts_and_the_run_goes_on(link, tmp_path):
    (tmp_path / "callbacks.yaml").write_text(
        "- class_path: callbacks.RunCheckpoint\n  init_args: {every_n_steps: 10, keep_last: 2}\n"
    )
    both = [start(tmp_path, host, rank, 100_000) for rank, host in enumerate(HOSTS)]
    try:
        limit = time.monotonic() + 240
        while not saved(tmp_path):
            assert time.monotonic() < limit, (tmp_path / "a.txt").read_text()[-3000:]
            assert all(p.poll() is None for p in both), (tmp_path / "a.txt").read_text()[-3000:]
            time.sleep(1)
        ip("-n", name("b"), "link", "set", name("b"), "down")
        cut = time.monotonic()
        for process in both:
            assert process.wait(90) != 0
        assert time.monotonic() - cut < 60
    finally:
        for process in both:
            process.kill()
    for host in HOSTS:
        assert "no sign of life" in (tmp_path / f"{host}.txt").read_text()
    ip("-n", name("b"), "link", "set", name("b"), "up")
    kept = saved(tmp_path)[-1]
    done = int(kept.removeprefix("step").removesuffix(".ckpt"))
    both = [start(tmp_path, host, rank, done + 5) for rank, host in enumerate(HOSTS)]
    try:
        assert [p.wait(240) for p in both] == [0, 0], (tmp_path / "a.txt").read_text()[-3000:]
    finally:
        for process in both:
            process.kill()
    assert f"step{done + 5:06d}.ckpt" in saved(tmp_path)
