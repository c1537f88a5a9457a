"""A run that goes on from a checkpoint reads what the uninterrupted one would have read."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.errors import KDError
from tests.data import kit


class Recorder(lightning.LightningModule):
    """Writes down the rows of every step."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.read = []
        self.tokenizer = kit.byte_tokenizer()

    def training_step(self, batch, batch_idx):
        self.read.append((self.global_step, batch.ids))
        return self.layer.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(tmp_path, steps, *, workers=0, every=None, ckpt=None, streaming=False, **more):
    path = kit.numbers(tmp_path / "rows.jsonl", 22)
    held = kit.numbers(tmp_path / "held.jsonl", 3)
    settings = {"limit_train": 22, "streaming": True} if streaming else {}
    data = kit.Echo(path, validation=held, batch_size=4, num_workers=workers, seed=3, **settings)
    saving = ModelCheckpoint(tmp_path / "ckpt", every_n_train_steps=every, save_top_k=-1)
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[saving] if every else [],
        enable_checkpointing=bool(every),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        **more,
    )
    module = Recorder()
    trainer.fit(module, data, ckpt_path=ckpt)
    return module.read


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact_within_and_across_epochs(tmp_path, workers, streaming):
    options = {"workers": workers, "streaming": streaming}
    whole = run(tmp_path, 14, **options, every=1)
    assert len(whole) == 14
    first = [name for _, ids in whole[:6] for name in ids]
    assert len(first) == len(set(first)) == 22  # an epoch of six steps, each row once
    assert whole[0][1] != whole[6][1]
    for stop in (3, 6, 8):  # inside the first epoch, at its end, inside the second
        checkpoint = next((tmp_path / "ckpt").glob(f"*step={stop}.ckpt"))
        assert whole[:stop] + run(tmp_path, 14, **options, ckpt=checkpoint) == whole


def test_overfitting_repeats_the_same_rows(tmp_path):
    read = run(tmp_path, 6, overfit_batches=2)
    assert read[0][1] == read[2][1] == read[4][1]


def test_state_is_free_of_batch_size_and_ranks(tmp_path):
    data = kit.Echo(kit.numbers(tmp_path / "a.jsonl", 20), batch_size=4)
    data.tokenizer = kit.byte_tokenizer()
    loader = data.train_dataloader()
    batches = iter(loader)
    first = {name for _ in range(2) for name in next(batches).ids}
    state = loader.state_dict()
    assert state == {"epoch": 0, "seen": 8, "seed": 0}
    other = kit.Echo(str(tmp_path / "a.jsonl"), batch_size=3)
    other.tokenizer = data.tokenizer
    resumed = other.train_dataloader()
    resumed.load_state_dict(state)
    rest = [name for batch in resumed for name in batch.ids]
    assert len(rest) == 11
    assert not first & set(rest)
    assert resumed.state_dict() == {"epoch": 1, "seen": 0, "seed": 0}


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    data = kit.Echo(kit.numbers(tmp_path / "a.jsonl", 5))
    data.tokenizer = kit.byte_tokenizer()
    with pytest.raises(KDError, match=r"stands at row 40 .*data has 4"):
        data.train_dataloader().load_state_dict({"epoch": 0, "seen": 40, "seed": 0})
