"""RLAIF on the demo pair: a judge, a reward model of what it says, and GRPO by that model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kd_lightning.cli import main
from kd_lightning.data.skills.demo import final
from kd_lightning.data.skills.demo_rows import FAMILIES, draw
from kd_lightning.rewards.base import Reward
from kd_lightning.teachers.generator import Generator, Kind, Reply
from kd_lightning.teachers.student import Student
from kd_lightning.types import Prompt, Sampling, Signal
from tests.conftest import ROOT
from tests.recipes.kit import recipe

CONFIGS = ROOT / "configs"
WORDS = Sampling(max_new_tokens=32, temperature=1.0)
GOES_ON = ("--model.student.config=null", "--model.student.tokenizer=null")
ITEMS = {
    split: {item.prompt: item.answer for f in FAMILIES for item in draw(f, split, count, 0)}
    for split, count in (("train", 200), ("test", 80))
}
"""Questions of each family with their right answers."""


def right(prompt: str, answer: str) -> float:
    """The oracle."""
    known = {**ITEMS["train"], **ITEMS["test"]}
    return float(final(answer.strip()) == final(known[prompt]))


class Oracle(Generator):
    """Judges by the right answer; it likes what it is shown first, which the swap must undo."""

    offers = frozenset({Signal.LOGPROB})
    name = "oracle"
    identity = "oracle"

    def replies(self, requests):
        for number, request in enumerate(requests):
            assert request.kind is Kind.CHOICES
            text = request.prompt.messages[-1].content
            prompt = text.split("Task:\n")[1].split("\n\nThe answers stand")[0]
            first = text.split("Answer A:\n")[1].split("\n#### ")[0]
            second = text.split("Answer B:\n")[1].split("\n#### ")[0]
            lead = 4 * (right(prompt, first) - right(prompt, second)) + 1
            share = 1 / (1 + math.exp(-lead))
            yield [(number, Reply(choices=(math.log(share), math.log(1 - share))))]


class Chance(Reward):
    """A number that has nothing to do with the answer: the control."""

    def __init__(self, seed: int = 0) -> None:
        """`seed`: of the numbers."""
        super().__init__()
        self.seed = seed
        self._drawn = torch.Generator().manual_seed(seed)

    def scores(self, batch, asked):
        return torch.rand(len(asked), generator=self._drawn)


def fit(folder: Path, experiment: str, method: str | None, steps: int, *args: str) -> str:
    """Train; the exported student's folder."""
    files = [CONFIGS / f"experiment/{experiment}.yaml"]
    files += [CONFIGS / f"method/{method}.yaml"] if method else []
    told = [part for file in files for part in ("-c", str(file))]
    options = [
        f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0",
        "--trainer.val_check_interval=null", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", f"--trainer.default_root_dir={folder}",
        f"--trainer.logger={CONFIGS / 'logger/csv.yaml'}",
        f"--trainer.callbacks={CONFIGS / 'callbacks/stage_reward_model.yaml'}"
        if method == "rlaif_reward_model"
        else f"--trainer.callbacks={CONFIGS / 'callbacks/stage.yaml'}",
    ]  # fmt: skip
    assert main(["fit", *told, *options, *args]) == 0
    return str(folder / "student")


def score(path: str) -> float:
    """Share of right answers, drawn at temperature 1."""
    student = Student(path, licence="test", device="cpu")
    prompts = list(ITEMS["test"])
    told = student.generate([Prompt.user(p) for p in prompts], sampling=WORDS)
    said = [completions[0].text for completions in told]
    return sum(right(p, a) for p, a in zip(prompts, said, strict=True)) / len(prompts)


def policy(folder: Path, start: str, *reward: str) -> float:
    """GRPO from the start, with the start as its reference; what the oracle says of it."""
    made = fit(
        folder, "demo", "grpo", 60, *GOES_ON, f"--model.student.path={start}",
        f"--model.teacher={CONFIGS / 'teacher/start.yaml'}",
        *reward, "--model.optimizer.init_args.lr=0.0001", "--model.scheduler=null",
        "--model.rollout.init_args.sampling.max_new_tokens=32",
        "--data.batch_size=8", "--data.train_rows=2000",
    )  # fmt: skip
    return score(made)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_judges_preferences_raise_the_oracles_score_and_chance_does_not(tmp_path):
    start = fit(
        tmp_path / "start", "demo_labels", None, 120, *GOES_ON, "--model.student.path=demo",
        "--model.optimizer.init_args.lr=0.001",
    )  # fmt: skip
    rows = [{"prompt": p} for p in ITEMS["train"]]
    student = Student(start, licence="test", device="cpu")

    def small(run):
        run.steps[0].sampling = WORDS

    labels = recipe("rlaif", tmp_path / "e", {"student": student, "judge": Oracle()}, rows, small)
    told = [record["scores"] for record in labels]
    clear = [pair for pair in told if abs(pair[0] - 0.5) > 1e-9]
    print(len(clear), len(told))
    assert 0.1 < len(clear) / len(told) < 0.9  # a tie is no wish, whatever stands first
    model = fit(
        tmp_path / "reward_model", "demo_preference", "rlaif_reward_model", 200,
        f"--data={CONFIGS / 'data/skill/preference.yaml'}", "--data.path=null",
        f"--data.knowledge={tmp_path / 'e/set'}", "--data.validation_share=0.02",
        "--data.batch_size=16", "--model.graded_rows=0", "--model.teacher=null",
        "--model.loss.init_args.score.init_args.width=128",
        "--model.optimizer.init_args.lr=0.0003",
    )  # fmt: skip
    found = {
        "start": score(start),
        "judged": policy(
            tmp_path / "judged", start,
            f"--model.reward={CONFIGS / 'reward/reward_model.yaml'}",
            f"--model.reward.init_args.path={model}",
        ),
        "chance": policy(
            tmp_path / "chance", start, "--model.reward.class_path=tests.pipeline.test_rlaif.Chance"
        ),
    }  # fmt: skip
    print(found)
    assert found["judged"] > found["start"] + 0.1, found
    assert found["chance"] < found["start"] + 0.05, found
