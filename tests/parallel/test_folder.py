"""A sharded checkpoint is data: what is more than that is refused by name."""

from __future__ import annotations

import io
import pickle
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp

from kd_lightning.errors import KDError
from kd_lightning.parallel import folder


class Evil:
    """Writes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of two tensors and a number."""
    state = {"a": torch.arange(6.0).view(2, 3), "n": {"lr": 0.5, "betas": (0.9, 0.95)}}
    dcp.save({"state_dict": state}, checkpoint_id=tmp_path / "x", no_dist=True)
    torch.save({"global_step": 3}, tmp_path / "x" / folder.REST)
    return tmp_path / "x"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_reads_tensors_and_plain_values(saved):
    state = {"state_dict": {"a": torch.zeros(2, 3), "n": {"lr": 0.0, "betas": ()}}}
    folder.read_into(state, saved)
    assert torch.equal(state["state_dict"]["a"], torch.arange(6.0).view(2, 3))
    assert state["state_dict"]["n"] == {"lr": 0.5, "betas": (0.9, 0.95)}
    assert folder.read_rest(saved) == {"global_step": 3}


def test_code_in_the_index_is_refused(saved, tmp_path):
    index = pickle.loads((saved / folder.INDEX).read_bytes())
    index.planner_data = Evil(tmp_path / "written")
    (saved / folder.INDEX).write_bytes(pickle.dumps(index))
    with pytest.raises(KDError, match=r"asks for .*open, which no checkpoint holds"):
        folder.read_index(saved)
    assert not (tmp_path / "written").exists()


def test_code_in_a_value_is_refused(tmp_path):
    value = io.BytesIO()
    torch.save(Evil(tmp_path / "written"), value)
    value.seek(0)
    assert zipfile.is_zipfile(value)
    value.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        folder._Planner().load_bytes(None, value)
    assert not (tmp_path / "written").exists()


def test_another_index_is_refused(saved):
    (saved / folder.INDEX).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(KDError, match=r"index of the checkpoint .* is damaged"):
        folder.read_index(saved)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    with pytest.raises(KDError, match="is no sharded checkpoint"):
        folder.read_index(tmp_path)
