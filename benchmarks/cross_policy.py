"""GRPO and RLOO beside TRL's trainers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cross_kit import (
    EQUAL,
    PROMPTS,
    apart,
    batch_of,
    line,
    named,
    ours,
    theirs,
    tiny,
    trained,
)
from benchmarks.harness import Report
from kd_lightning.losses import PolicyGradient
from kd_lightning.losses.advantages import GRPO, RLOO, Advantage, DrGRPO, Rewards
from kd_lightning.losses.answers import spoken
from kd_lightning.losses.penalties import K3
from kd_lightning.losses.surrogates import ClippedRatio, ImportanceWeighted
from kd_lightning.types import Batch


def reward_of(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Anything that differs from answer to answer."""
    return [(sum(ids) % 13) / 7 - 0.5 * len(ids) for ids in completion_ids]


def drawn(inputs: Mapping[str, Any], **words: Tensor) -> Batch:
    """The answers of a trainer's batch, with rewards; those to one prompt side by side.

    `words`: what is known of each word of the completions, `[B, C]`. The rows' ids are their places
    in the trainer's batch.
    """
    asked = zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
    prompts = [tuple(row[mask.bool()].tolist()) for row, mask in asked]
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    order = torch.tensor(sorted(range(len(prompts)), key=lambda i: numbers[prompts[i]]))
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)[order]
    there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)[order]
    answer = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
    masks = inputs["completion_mask"][order].bool()
    completions = [
        c[m].tolist() for c, m in zip(inputs["completion_ids"][order], masks, strict=True)
    ]
    batch = batch_of(
        ids, there, answer[order],
        group=torch.tensor([numbers[prompts[i]] for i in order.tolist()]),
        reward=torch.tensor(reward_of(completions)),
    )  # fmt: skip
    where = spoken(batch)
    placed = {}
    for name, values in words.items():
        placed[name] = torch.zeros(where.shape)
        placed[name][where] = values[order][masks]  # both row by row, word by word
    return batch.replace(**placed, ids=tuple(str(i) for i in order.tolist()))


def policy(report: Report, tokenizer: Any, folder: str) -> None:
    """GRPO and RLOO: advantages, then losses with an older policy's words."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    place = str(Path(folder) / "model")
    tiny(tokenizer, 0).save_pretrained(place)
    data = Dataset.from_list([{"prompt": p} for p in PROMPTS])
    common = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 9,
        "beta": 0.04,
    }

    def grpo(trainer: Any, model: Any, inputs: Any) -> None:
        lines = {
            "grpo": ("sequence", ClippedRatio()),
            "bnpo": ("token", ClippedRatio()),
            "dapo": ("token", ClippedRatio(0.2, 0.28)),
            "dr_grpo": ("dr", ClippedRatio()),
            "cispo": ("token", ImportanceWeighted(cap=1.05)),
            "grpo, plain K3": ("sequence", ClippedRatio()),
            "grpo, whole answers (GSPO)": ("sequence", ClippedRatio(level="mean")),
        }
        for centred, advantage in ((False, GRPO()), (True, DrGRPO())):
            if (trainer.scale_rewards == "none") == centred:
                advantages(report, type(advantage).__name__, advantage, inputs)
        if trainer.scale_rewards == "none":
            return
        old = older(trainer, model, inputs)
        given = inputs["advantages"]
        inputs = {**shortened(inputs), "old_per_token_logps": old}
        known = {"behaviour": old, "reference": inputs["ref_per_token_logps"]}
        batch = drawn(inputs, **known)
        batch = batch.replace(advantages=given[[int(i) for i in batch.ids]])
        for kind, (normalise, surrogate) in lines.items():
            trainer.loss_type = kind.split(",")[0]
            trainer.epsilon_high = {"dapo": 0.28, "cispo": 1.05}.get(kind, 0.2)
            trainer.importance_sampling_level = "sequence" if "GSPO" in kind else "token"
            trainer.args.use_bias_correction_kl = corrected = "," not in kind
            loss = PolicyGradient(
                GRPO(),
                surrogate,
                normalise,
                length=9,
                kl=K3(corrected),
                kl_weight=0.04,
                reference="cached",
            )  # type: ignore[arg-type]
            line(report, f"GRPO {kind}", ours(loss, model, model, batch),
                 theirs(trainer, model, inputs))  # fmt: skip
        trainer.loss_type, trainer.importance_sampling_level = "bnpo", "token"
        trainer.args.use_bias_correction_kl = False
        parts = [{k: v[a:b] if isinstance(v, Tensor) and v.ndim else v for k, v in inputs.items()}
                 for a, b in ((0, 2), (2, 8))]  # fmt: skip
        halves = [theirs(trainer, model, part)[0] for part in parts]
        loss = PolicyGradient(
            GRPO(), ClippedRatio(), "token", kl=K3(), kl_weight=0.04, reference="cached"
        )
        why = "micro-batches of 2 and 6 answers: TRL takes the mean over each"
        named(report, "GRPO bnpo split", ours(loss, model, model, batch, rows=4)[0],
              sum(halves) / 2, why)  # fmt: skip

    def rloo(trainer: Any, model: Any, inputs: Any) -> None:
        with torch.no_grad():
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            keep = inputs["completion_ids"].shape[1]
            fixed = trainer._get_per_token_logps_and_entropies(trainer.ref_model, ids, there, keep)[
                0
            ]
        old = older(trainer, model, inputs)
        batch = drawn(inputs, behaviour=old, reference=fixed)
        loss = PolicyGradient(
            RLOO(), ClippedRatio(level="product"), "sequence", reward_kl=0.04, reference="cached"
        )
        given = inputs["advantages"][[int(i) for i in batch.ids]]
        made: list[Tensor] = []
        loss.advantage = _Kept(RLOO(), made)
        summed = (old * inputs["completion_mask"]).sum(1)
        mine = ours(loss, model, model, batch)
        line(report, "RLOO", mine, theirs(trainer, model, {**inputs, "old_logps": summed}))
        found = made[0][:, :1].squeeze(1)
        report.row(what="RLOO advantages", ours=float(found[0]), trl=float(given[0]),
                   value=apart(found, given))  # fmt: skip
        report.at_most("RLOO advantages", apart(found, given), EQUAL)

    for scale in ("group", "none"):
        trained(
            GRPOTrainer, GRPOConfig, folder, grpo,
            model=place, reward_funcs=reward_of, processing_class=tokenizer, train_dataset=data,
            settings={**common, "scale_rewards": scale, "loss_type": "grpo"},
        )  # fmt: skip
    trained(
        RLOOTrainer, RLOOConfig, folder, rloo,
        model=place, reward_funcs=reward_of, processing_class=tokenizer, train_dataset=data,
        settings=common,
    )  # fmt: skip


def shortened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same answers cut to different lengths, so that ways of normalising differ."""
    mask = inputs["completion_mask"].clone()
    for i, row in enumerate(mask):
        row[2 + 3 * i % 7 :] = 0
    return {**inputs, "completion_mask": mask, "num_items_in_batch": mask.sum()}


class _Kept(Advantage):
    """Another advantage, remembered."""

    grouped = True

    def __init__(self, inner: Advantage, made: list[Tensor]) -> None:
        self.inner = inner
        self.made = made

    def __call__(self, rewards: Rewards) -> Tensor:
        found = self.inner(rewards)
        self.made.append(found)
        return found


def advantages(report: Report, name: str, advantage: Advantage, inputs: Mapping[str, Any]) -> None:
    """Ours from the same rewards."""
    batch = drawn(inputs)
    assert batch.reward is not None and batch.group is not None
    where = spoken(batch)
    tokens = torch.zeros(where.shape)
    tokens[:, -1] = batch.reward
    found = advantage(Rewards(tokens, where, batch.group))[:, 0]
    given = inputs["advantages"][[int(i) for i in batch.ids]]
    report.row(what=f"{name} advantages", ours=float(found[0]), trl=float(given[0]),
               value=apart(found, given))  # fmt: skip
    report.at_most(f"{name} advantages", apart(found, given), EQUAL)


def older(trainer: Any, model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Log-probabilities of the words under a policy that is some way off, `[B, C]`."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    there = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    with torch.no_grad():
        keep = inputs["completion_ids"].shape[1]
        now = trainer._get_per_token_logps_and_entropies(model, ids, there, keep)[0]
    generator = torch.Generator().manual_seed(7)
    return now + 0.15 * torch.randn(now.shape, generator=generator)
