from __future__ import annotations

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from kd_lightning import loggers
from kd_lightning.loggers import (
    MetricsFile,
    TensorBoardRun,
    WandbRun,
    place_loggers,
    read_metrics,
    why_offline,
)
from tests.conftest import ROOT


def test_columns_that_come_later_and_a_second_start(tmp_path):
    first = MetricsFile(str(tmp_path))
    first.log_metrics({"a": 1.0}, 1)
    first.log_metrics({"a": 2.0, "b": 0.5}, 2)
    second = MetricsFile(str(tmp_path))
    second.log_metrics({"b": 0.25, "c": 7}, 3)
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "1.0", "b": "", "c": ""},
        {"step": "2", "a": "2.0", "b": "0.5", "c": ""},
        {"step": "3", "a": "", "b": "0.25", "c": "7.0"},
    ]


def test_a_file_that_was_removed_begins_again_with_its_header(tmp_path):
    logger = MetricsFile(str(tmp_path))
    logger.log_metrics({"a": 1.0}, 1)
    (tmp_path / "metrics.csv").unlink()
    logger.log_metrics({"a": 2.0}, 2)
    assert read_metrics(tmp_path / "metrics.csv") == [{"step": "2", "a": "2.0"}]


def test_constructors_touch_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network"))
    made = [MetricsFile(), WandbRun(), TensorBoardRun()]
    assert list(tmp_path.iterdir()) == []
    place_loggers(made, tmp_path / "run")
    assert {logger.save_dir for logger in made} == {str(tmp_path / "run")}
    assert made[2].log_dir == str(tmp_path / "run" / "tensorboard")
    assert list(tmp_path.iterdir()) == []


def test_a_given_folder_stays(tmp_path):
    logger = MetricsFile("mine")
    place_loggers([logger], tmp_path)
    assert logger.save_dir == "mine"


@pytest.fixture
def service():
    """A server that answers everything with 404, as a service behind a login may."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_online_needs_a_key_and_a_service(monkeypatch, tmp_path, service):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", service)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "no key" in why_offline()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert why_offline() is None
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password abc\n")
    assert why_offline() is None
    with socket.socket() as free:  # bound and not listening: nobody answers
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "does not answer" in why_offline()


def test_a_wish_for_a_mode_is_followed(monkeypatch):
    monkeypatch.setattr(loggers, "why_offline", lambda: "no key")
    assert WandbRun(mode="online")._mode() == "online"
    assert WandbRun()._mode() == "offline"
    monkeypatch.setattr(loggers, "why_offline", lambda: None)
    assert WandbRun()._mode() == "online"
    assert WandbRun(mode="offline")._mode() == "offline"


def test_two_runs_in_one_process_are_two_runs(tmp_path):
    assert os.environ["WANDB_MODE"] == "offline"
    for name in ("one", "two"):
        logger = WandbRun(save_dir=str(tmp_path / name))
        logger.log_metrics({"a": 1.0}, 1)
    logger.experiment.finish()
    for name in ("one", "two"):
        assert len(list((tmp_path / name).glob("wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("name", ["csv", "wandb", "tensorboard", "all"])
def test_the_configurations_name_loggers_that_exist(name):
    listed = yaml.safe_load((ROOT / "configs" / "logger" / f"{name}.yaml").read_text())
    for entry in listed:
        module, _, kind = entry["class_path"].rpartition(".")
        assert module == "kd_lightning.loggers"
        getattr(loggers, kind)(**entry.get("init_args", {}))
