"""RLAIF on the demo pair: a judge, a reward model of what it says, and GRPO by that model.

Direct RLAIF: a policy gradient on the judge's own scores. The control: chance in the judge's place.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kd_lightning.cli import main
from kd_lightning.data.skills.demo import final
from kd_lightning.data.skills.demo_rows import FAMILIES, draw
from kd_lightning.rewards.base import Reward, told
from kd_lightning.teachers.generator import Generator, Kind, Reply
from kd_lightning.teachers.student import Student
from kd_lightning.types import Prompt, Sampling, Signal
from tests.conftest import ROOT
from tests.recipes.kit import recipe

CONFIGS = ROOT / "configs"
WORDS = Sampling(max_new_tokens=32, temperature=1.0)
GOES_ON = ("--model.student.config=null", "--model.student.tokenizer=null")
TRAIN_ROWS = 2000


def items(split: str, count: int) -> dict[str, str]:
    """Questions with their right answers, `count` of each family."""
    return {item.prompt: item.answer for f in FAMILIES for item in draw(f, split, count, 0)}


TEST = items("test", 80)
KNOWN = {**items("train", TRAIN_ROWS // len(FAMILIES)), **TEST}


def right(prompt: str, answer: str) -> float:
    """The oracle."""
    return float(final(answer.strip()) == final(KNOWN[prompt]))


def between(text: str, before: str, behind: str) -> str:
    """What a prompt says between two headings."""
    return text.split(before)[1].split(behind)[0]


class Oracle(Generator):
    """Judges by the right answer; it likes what it is shown first, which the swap must undo.

    Of single answers it says a number from 1 to 9: twice as likely the next number towards 9 for a
    right answer, towards 1 for another.
    """

    offers = frozenset({Signal.LOGPROB})
    name = "oracle"
    identity = "oracle"

    def replies(self, requests):
        for number, request in enumerate(requests):
            assert request.kind is Kind.CHOICES
            text = request.prompt.messages[-1].content
            says = self.compared(text) if len(request.texts) == 2 else self.scored(text)
            yield [(number, Reply(choices=says))]

    def compared(self, text):
        prompt = between(text, "Task:\n", "\n\nThe answers stand")
        first = between(text, "Answer A:\n", "\n#### ")
        second = between(text, "Answer B:\n", "\n#### ")
        lead = 4 * (right(prompt, first) - right(prompt, second)) + 1
        share = 1 / (1 + math.exp(-lead))
        return math.log(share), math.log(1 - share)

    def scored(self, text):
        prompt = between(text, "Task:\n", "\n\nThe answer stands")
        answer = between(text, "Answer to be scored:\n", "\n#### ")
        towards = math.log(2) * (2 * right(prompt, answer) - 1)
        return tuple(number * towards for number in range(9))


class Chance(Reward):
    """Numbers at random that lean neither to right answers nor to wrong ones: the control.

    A group's numbers are kept or turned, whichever brings the sum of their advantages on right
    answers back to 0: a few thousand numbers lean to one side by chance, and the policy follows.
    """

    def __init__(self, seed: int = 0) -> None:
        """`seed`: of the numbers."""
        super().__init__()
        self.seed = seed
        self._drawn = torch.Generator().manual_seed(seed)
        self._lean = 0.0

    def scores(self, batch, asked):
        numbers = torch.rand(len(asked), generator=self._drawn)
        known = torch.tensor([right(told(each.example), each.answer) for each in asked])
        for group in batch.group.unique():
            rows = batch.group == group
            drawn = numbers[rows]
            lean = float((((drawn - drawn.mean()) / drawn.std()) * known[rows]).sum())
            if lean * self._lean > 0:
                numbers[rows], lean = 1 - drawn, -lean
            self._lean += lean
        return numbers


def fit(
    folder: Path, experiment: str, method: str | None, seed: int, steps: int, *args: str
) -> str:
    """Train; the exported student's folder."""
    files = [CONFIGS / f"experiment/{experiment}.yaml"]
    files += [CONFIGS / f"method/{method}.yaml"] if method else []
    told = [part for file in files for part in ("-c", str(file))]
    options = [
        f"--seed_everything={seed}", f"--trainer.max_steps={steps}",
        "--trainer.limit_val_batches=0",
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
    prompts = list(TEST)
    told = student.generate([Prompt.user(p) for p in prompts], sampling=WORDS)
    said = [completions[0].text for completions in told]
    return sum(right(p, a) for p, a in zip(prompts, said, strict=True)) / len(prompts)


def policy(folder: Path, start: str, method: str, seed: int, *reward: str) -> float:
    """A policy gradient from the start, the start as its reference; what the oracle says of it."""
    made = fit(
        folder, "demo", method, seed, 60, *GOES_ON, f"--model.student.path={start}",
        f"--model.teacher={CONFIGS / 'teacher/start.yaml'}",
        *reward, "--model.optimizer.init_args.lr=0.0001", "--model.scheduler=null",
        "--model.rollout.init_args.sampling.max_new_tokens=32",
        "--data.batch_size=8", f"--data.train_rows={TRAIN_ROWS}",
    )  # fmt: skip
    return score(made)


def rewarded(folder: Path, start: str, seed: int) -> str:
    """A reward model of what the judge says of the start's answers."""
    rows = [{"prompt": p} for p in items("train", 200)]
    student = Student(start, licence="test", device="cpu")

    def small(run):
        run.steps[0].sampling = WORDS

    speakers = {"student": student, "judge": Oracle()}
    labels = recipe("rlaif", folder / "e", speakers, rows, small, seed=seed)
    judged = [record["scores"] for record in labels]
    clear = [pair for pair in judged if abs(pair[0] - 0.5) > 1e-9]
    print(len(clear), len(judged))
    assert 0.1 < len(clear) / len(judged) < 0.9  # a tie is no wish, whatever stands first
    return fit(
        folder / "reward_model", "demo_preference", "rlaif_reward_model", seed, 200,
        f"--data={CONFIGS / 'data/skill/preference.yaml'}", "--data.path=null",
        f"--data.knowledge={folder / 'e/set'}", "--data.validation_share=0.02",
        "--data.batch_size=16", "--model.graded_rows=0", "--model.teacher=null",
        "--model.loss.init_args.score.init_args.width=128",
        "--model.optimizer.init_args.lr=0.0003",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_a_judges_preferences_raise_the_oracles_score_and_chance_does_not(tmp_path, seed):
    start = fit(
        tmp_path / "start", "demo_labels", None, seed, 120, *GOES_ON, "--model.student.path=demo",
        "--model.optimizer.init_args.lr=0.001",
    )  # fmt: skip
    model = rewarded(tmp_path, start, seed)
    here = "tests.pipeline.test_rlaif"
    arms = {
        "judged": (
            "grpo",
            f"--model.reward={CONFIGS / 'reward/reward_model.yaml'}",
            f"--model.reward.init_args.path={model}",
        ),
        "direct": (
            "direct_rlaif",
            f"--model.reward={CONFIGS / 'reward/judge.yaml'}",
            f"--model.reward.init_args.generator={here}.Oracle",
        ),
        "chance": (
            "grpo",
            f"--model.reward.class_path={here}.Chance", f"--model.reward.init_args.seed={seed}",
        ),
    }  # fmt: skip
    found = {"start": score(start)}
    for name, (method, *reward) in arms.items():
        found[name] = policy(tmp_path / name, start, method, seed, *reward)
        print(seed, found, flush=True)
    assert min(found["judged"], found["direct"]) > found["start"] + 0.1, found
    assert found["chance"] < found["start"] + 0.05, found
