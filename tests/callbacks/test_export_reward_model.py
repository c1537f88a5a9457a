"""A reward model that was trained here is loaded as a reward."""

import pytest
import torch
from lightning import seed_everything

import callbacks as ours
from kd_lightning.errors import KDError
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.ranking import Ranking
from kd_lightning.losses.scores import LogProbability, ScalarHead
from kd_lightning.rewards.reward_model import RewardModel
from kd_lightning.types import Batch
from tests.callbacks.test_cached_reference import pairs
from tests.evaluation.pair import distiller, trainer
from tests.rewards.kit import checked


def fitted(folder, teacher, loss):
    seed_everything(1, verbose=False)
    module, data = distiller(None, teacher, loss), pairs(folder)
    watched = [ours.ExportStudent(), ours.ExportRewardModel()]
    trainer(folder / "run", callbacks=watched, max_steps=60).fit(module, data)
    return module, data


def test_its_numbers_are_those_of_the_training(tmp_path, tiny_teacher):
    loss = Ranking(ScalarHead(16), Logistic())
    module, data = fitted(tmp_path, tiny_teacher, loss)
    reward = checked(RewardModel(str(tmp_path / "run/student"), dtype="float32"))
    [batch] = [Batch(**vars(b)) for b in data.val_dataloader()]
    answers = [a for e in batch.examples[::2] for a in e.meta["answers"]]
    found = reward(batch, answers)
    with torch.no_grad():
        output = module.student.eval()(batch)
        expected = loss.score(loss._said(output, None, batch, torch.zeros(batch.targets.shape)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found[0::2] > found[1::2]).all()  # it learned which are better


def test_another_loss_is_refused_before_training(tmp_path, tiny_teacher):
    with pytest.raises(KDError, match=r"reward_model\.yaml"):
        fitted(tmp_path, tiny_teacher, Ranking(LogProbability(), Logistic()))
