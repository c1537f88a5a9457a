"""R16: a whole run opens no connection, and no clock, locale or host name changes it."""

from __future__ import annotations

import json
import socket

import pytest
import torch

from kd_lightning.cli import main
from tests.test_cli import experiment, rows

_ = (experiment, rows)  # fixtures


def test_r16_a_run_without_any_network(experiment, monkeypatch, tmp_path):
    def refused(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert main(["fit", "-c", str(experiment)]) == 0
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati"])
def test_r16_clock_and_locale_do_not_change_a_run(experiment, monkeypatch, tmp_path, zone):
    import time

    assert main(["fit", "-c", str(experiment)]) == 0
    monkeypatch.setenv("TZ", zone)
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    time.tzset()
    try:
        other = f"--trainer.default_root_dir={tmp_path / 'other'}"
        assert main(["fit", "-c", str(experiment), other]) == 0
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    one, two = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "other")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1


@pytest.mark.parametrize("strategy", ["fsdp", "ddp"])
def test_r16_processes_of_one_machine_listen_on_loopback(victims, tmp_path, tiny_teacher, strategy):
    assert victims.pair(tmp_path, teacher=tiny_teacher, strategy=strategy, steps=1) == [0, 0]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"listens-{rank}.json").read_text())
        assert found and LOOPBACK.issuperset(found), found
