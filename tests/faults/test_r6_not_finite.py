"""R6: a loss or gradient that is not finite never reaches the weights; raise, skip or roll back."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback

import kd_lightning.losses as losses
from kd_lightning.errors import KDError
from kd_lightning.reliability import commit
from kd_lightning.reliability.finite import NotFinite, read_replay
from kd_lightning.reliability.keeper import Keeper
from tests import steps
from tests.test_cli import experiment, rows, said

_ = (experiment, rows)  # fixtures


class Spoil(Callback):
    """Makes the gradient (or the weights) of chosen batches not a number."""

    def __init__(self, *batches: int, weights: bool = False) -> None:
        self.batches = batches
        self.weights = weights
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        weight = next(pl_module.student.parameters())
        self.norms.append(float(weight.detach().norm()))
        if batch_idx in self.batches:
            if self.weights:
                with torch.no_grad():
                    weight[0, 0] = torch.nan
            else:
                self.hook = weight.register_hook(lambda gradient: gradient * torch.inf)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx in self.batches and not self.weights:
            self.hook.remove()


def fitted(teacher, folder, spoil, settings, number=6, keeper=None):
    model = steps.distiller(teacher, losses.ForwardKL(), not_finite=settings)
    extra = [keeper] if keeper else []
    trainer = steps.trainer(
        folder,
        max_steps=number - len(spoil.batches),
        callbacks=[spoil, *extra],
        checkpoint=bool(keeper),
    )
    trainer.fit(model, steps.Steps(number))
    return model, trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.student.parameters()])


def test_r6_raise_leaves_the_weights_and_a_replay_file(tiny_teacher, tmp_path):
    spoil = Spoil(2)
    with pytest.raises(KDError, match=r"gradient norm (inf|nan) at step 2.*row-0"):
        fitted(tiny_teacher, tmp_path, spoil, NotFinite())
    good, _ = fitted(tiny_teacher, tmp_path / "good", Spoil(), NotFinite(), number=2)
    saved = torch.load(tmp_path / "not_finite/step-2.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"student.{n}"], p) for n, p in good.student.named_parameters())
    rows = json.loads((tmp_path / "not_finite/step-2-rank-0.json").read_text())
    batch = read_replay(tmp_path / "not_finite/step-2-rank-0.pt")
    assert list(batch.ids) == rows["ids"] == [f"row-{i}" for i in range(4)]
    assert torch.equal(batch.input_ids, steps.global_batch().input_ids)
    assert torch.equal(batch.weights, steps.global_batch().weights)


def test_r6_skip_leaves_the_batch_out(tiny_teacher, tmp_path):
    """Six batches of which two are bad: the four good ones' weights, bit for bit."""
    skip = NotFinite(then="skip", budget=2)
    model, trainer = fitted(tiny_teacher, tmp_path, Spoil(1, 4), skip)
    good, _ = fitted(tiny_teacher, tmp_path / "good", Spoil(), NotFinite(), number=4)
    assert trainer.global_step == 4 and torch.equal(weights(model), weights(good))
    assert len(list((tmp_path / "not_finite").glob("*.pt"))) == 2


def test_r6_skip_has_a_budget(tiny_teacher, tmp_path):
    with pytest.raises(KDError, match=r"stopped before the optimizer moved \(time 2\)"):
        fitted(tiny_teacher, tmp_path, Spoil(1, 2), NotFinite(then="skip", budget=1))


def test_r6_roll_back_returns_to_the_checkpoint(tiny_teacher, tmp_path):
    """Weights that are spoilt already: no batch would ever pass again, the checkpoint's do."""
    spoil = Spoil(3, weights=True)
    keeper = Keeper(every_n_steps=2)
    settings = NotFinite(then="roll_back", budget=1)
    model, trainer = fitted(tiny_teacher, tmp_path, spoil, settings, keeper=keeper)
    assert trainer.global_step == 5 and weights(model).isfinite().all()
    assert spoil.norms[4] == spoil.norms[2]  # the state of step 2, from which it went on
    for found in commit.committed(tmp_path / "checkpoints"):
        state = torch.load(found.path, weights_only=True)["state_dict"]
        assert all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def test_r6_roll_back_without_a_checkpoint_says_so(tiny_teacher, tmp_path):
    with pytest.raises(KDError, match="no checkpoint to roll back to"):
        fitted(tiny_teacher, tmp_path, Spoil(1), NotFinite(then="roll_back"))


def test_r6_a_metric_that_is_not_a_number_is_never_the_best(tmp_path):
    keeper = Keeper(monitor="val/loss")
    keeper.scores = {"step000001.ckpt": 2.0, "step000002.ckpt": 1.0}

    class Fake:
        state = type("S", (), {"fn": "fit"})()
        sanity_checking = False
        callback_metrics = {"val/loss": torch.tensor(float("nan"))}  # noqa: RUF012
        global_step = 3
        fast_dev_run = True

    keeper.on_validation_end(Fake(), None)
    assert keeper.best(["step000001.ckpt", "step000002.ckpt", "step000003.ckpt"]) == [
        "step000002.ckpt"
    ]


def test_r6_from_the_command_line(capsys, experiment, tmp_path):
    hot = ["--model.optimizer.lr=1e30", "--trainer.max_steps=20", "--model.not_finite.then=skip"]
    code, _, err = said(capsys, "fit", "-c", str(experiment), *hot, "--model.not_finite.budget=3")
    assert code == 2 and "stopped before the optimizer moved (time 4)" in err


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("then", ["raise", "skip", "roll_back"])
def test_r6_two_processes_not_a_number_on_one(victims, tiny_teacher, tmp_path, then, strategy):
    """All ranks decide alike, and the bad step has not touched the weights."""
    job = {"teacher": tiny_teacher, "strategy": strategy, "every": 2}
    bad, good = tmp_path / "bad", tmp_path / "good"
    at = 2 if then == "raise" else 3
    codes = victims.pair(bad, spoil_rank=1, spoil_at=at, then=then, **job)
    said = "\n".join((bad / f"said-{r}.txt").read_text()[-2500:] for r in (0, 1))
    assert codes == ([1, 1] if then == "raise" else [0, 0]), said
    ends = [json.loads((bad / f"end-{r}.json").read_text()) for r in (0, 1)]
    assert [end["step"] for end in ends] == [2 if then == "raise" else 5] * 2
    assert all(end["finite"] for end in ends)
    assert (ends[0] == ends[1]) is (strategy == "ddp")  # each rank its shard
    assert len(list((bad / "not_finite").glob("step-*-rank-?.pt"))) == 2
    if then == "raise":  # the weights of a run that was stopped after the last good step
        assert victims.pair(good, signal=int(signal.SIGTERM), signal_at=1, **job) == [143, 143]
        assert ends == [json.loads((good / f"end-{r}.json").read_text()) for r in (0, 1)]
        return
    for rank in (0, 1):
        norms = json.loads((bad / f"norms-{rank}.json").read_text())
        assert norms[4] == norms[3 if then == "skip" else 2] and len(set(norms)) == len(norms) - 1
