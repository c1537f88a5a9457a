"""R13: rows that teach nothing are left out and counted; a batch without targets is harmless."""

from __future__ import annotations

import json

import pytest
import torch

from kd_lightning import losses
from kd_lightning.data.skills.plain_text import PlainText
from kd_lightning.errors import KDError
from kd_lightning.trainer import KDTrainer
from tests.data import kit
from tests.faults import parts
from tests.faults.parts import Trace, trace

GOOD = {"prompt": "ab", "answer": "c"}
LONG = "x" * 80
ROWS = {
    "empty": ({"prompt": "", "answer": ""}, "no answer"),
    "all prompt": ({"prompt": "ab", "answer": ""}, "no answer"),
    "longer than the context": ({"prompt": LONG, "answer": "c"}, "longer than 60 tokens"),
}
CUT = {
    "right": ({"prompt": LONG, "answer": "c"}, "answer cut off by the length limit"),
    "left": ({"prompt": "ab", "answer": LONG}, "answer alone longer than 60 tokens"),
}


def read(tmp_path, rows, kind=kit.Echo, **settings):
    made = kind(
        kit.write(tmp_path / "a.jsonl", rows), validation_share=0.0, max_length=60,
        **{"truncation": "drop", **settings},
    )  # fmt: skip
    made.tokenizer = kit.byte_tokenizer(kit.CHATML)
    return made


def test_r13_rows_are_left_out_by_rule_and_counted_by_cause(tmp_path):
    rows = [GOOD, *(row for row, _ in ROWS.values()), GOOD, ROWS["empty"][0]]
    made = read(tmp_path, rows)
    assert [row.example.id for row in made.encoded("train")] == ["a.jsonl:1", "a.jsonl:5"]
    assert made.summary["train"].dropped == {"no answer": 3, "longer than 60 tokens": 1}
    assert all(row.answered for row in made.encoded("train"))


def test_r13_that_nothing_is_to_be_said_is_learned_where_that_is_asked_for(tmp_path):
    silent = {"prompt": "ab", "answer": ""}
    made = read(tmp_path, [GOOD, silent, {"prompt": LONG, "answer": ""}], empty_answers=True)
    said, nothing = made.encoded("train")
    assert nothing.answered == said.answered - 1 > 0  # the end alone
    assert nothing.ids[nothing.weights > 0].tolist() == said.ids[said.weights > 0].tolist()[1:]
    assert made.summary["train"].dropped == {"longer than 60 tokens": 1}


@pytest.mark.parametrize("policy", CUT)
def test_r13_cut_past_the_answer(tmp_path, policy):
    row, why = CUT[policy]
    made = read(tmp_path, [GOOD, row, row], truncation=policy)
    assert len(made.encoded("train")) == 1
    assert made.summary["train"].dropped == {why: 2}


def test_r13_one_token_cannot_be_predicted(tmp_path):
    made = read(tmp_path, [{"text": "a"}, {"text": "ab"}, {"text": ""}], PlainText, end="none")
    made.tokenizer = kit.byte_tokenizer(bos=None)
    (row,) = made.encoded("train")
    assert row.answered == 1
    assert made.summary["train"].dropped == {"nothing to learn": 1, "no answer": 1}


def test_r13_nothing_left_is_an_error_that_counts(tmp_path):
    rows = [row for row, _ in ROWS.values()]
    with pytest.raises(KDError, match=r"no row of train is left \(2 no answer, 1 longer than 60"):
        read(tmp_path, rows).encoded("train")


class Still(torch.optim.SGD):
    """Keeps the gradients that it was given."""

    seen: list[list[torch.Tensor]]

    def step(self, closure=None):
        made = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        self.seen = [*getattr(self, "seen", []), made]
        return super().step(closure)


@pytest.mark.parametrize("loss", [losses.CrossEntropy, losses.ForwardKL, losses.TAID])
@pytest.mark.parametrize("rows", [None, 2])
def test_r13_no_targets_give_loss_0_and_gradients_0(tmp_path, tiny_teacher, loss, rows):
    made: list[Still] = []

    def optimizer(parameters):
        made.append(Still(parameters, lr=1.0))
        return made[0]

    module = parts.distiller("kl", tiny_teacher)
    module.loss, module.make_optimizer, module.make_scheduler = loss(), optimizer, None
    module.micro_batch_rows = rows
    trainer = KDTrainer(
        accelerator="cpu", devices=1, max_steps=2, log_every_n_steps=1, logger=False,
        callbacks=[Trace(tmp_path, {"empty_at": 0})], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        default_root_dir=tmp_path, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=parts.data(tmp_path))
    told = trace(tmp_path)
    assert float.fromhex(told[1]["loss"]) == 0.0
    assert float.fromhex(told[2]["loss"]) > 0.0
    empty, full = made[0].seen
    assert not any(g.any() for g in empty) and any(g.any() for g in full)
    assert all(g.isfinite().all() for g in full)


def test_r13_where_only_one_of_two_ranks_has_targets(victims, tmp_path, tiny_teacher):
    """No hang, no NaN; the loss is that of the tokens that are there."""
    two, one = tmp_path / "two", tmp_path / "one"
    job = {"teacher": tiny_teacher, "steps": 3, "empty_at": 1}
    assert victims.pair(two, rank=1, strategy="fsdp", **job) == [0, 0]
    ranks = [trace(two / f"rank-{r}") for r in (0, 1)]
    gone = ranks[1][2]["ids"]
    assert len(gone) == 3 and set(gone).isdisjoint(ranks[0][2]["ids"])
    alone = {"variant": "kl", "rows": 42, "batch": 6, "validate": 0, "empty_ids": gone}
    assert victims.run(one, **job, **alone) == 0, (one / "said.txt").read_text()[-2000:]
    for step, told in trace(one).items():
        assert set(told["ids"]) == {*ranks[0][step]["ids"], *ranks[1][step]["ids"]}
        losses = [float.fromhex(each[step]["loss"]) for each in ranks]
        assert losses == pytest.approx([float.fromhex(told["loss"])] * 2, abs=1e-6) and losses[0]
    assert all(json.loads((two / f"end-{r}.json").read_text())["finite"] for r in (0, 1))
