"""vLLM in the process that trains, in an environment that has both (`make vllm`).

python -m tests.rollouts.colocated ONE TWO FOLDER: what it drew, and whole fits, as JSON in FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from callbacks.sync_rollout_weights import SyncRolloutWeights
from kd_lightning.errors import KDError
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.vllm_colocated import VLLMColocated
from kd_lightning.types import Batch, Sampling
from tests.rollouts import kit, served
from tests.rollouts.test_rollouts import logprobs

SETTINGS = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, "max_num_seqs": 32}
HOW = {
    "greedy": Sampling(40),
    "drawn": Sampling(10, temperature=0.7, top_p=0.9, top_k=20),
}


def told(made: Batch, student: str) -> dict[str, Any]:
    """Answers, whether they ended, their log-probabilities, and what the student says of them."""
    assert made.behaviour is not None
    return {
        "said": plain(kit.texts(made)),
        "finished": [a.finished for a in made.answers],
        "behaviour": made.behaviour.tolist(),
        "own": logprobs(kit.model(student), made).tolist(),
    }


def plain(said: dict[str, list[tuple[int, ...]]]) -> dict[str, list[list[int]]]:
    """As JSON gives it back."""
    return {name: [list(answer) for answer in answers] for name, answers in said.items()}


def main(one: str, two: str, folder: str) -> None:
    torch.set_num_threads(1)
    place = Path(folder)
    found: dict[str, Any] = {}
    try:
        VLLMColocated(settings=SETTINGS).load(Path(one))
    except KDError as error:
        found["asleep"] = str(error)
    engine = VLLMColocated(sleep=False, settings=SETTINGS)
    rows = kit.batch(kit.examples(12), fillers=1)
    for turn, student in enumerate((one, two, one)):
        engine.load(Path(student))
        engine.loaded = 0
        for name, how in HOW.items():
            made = served.roll(FromStudent(2, how, engine=engine), rows, student)
            found[f"{name}-{turn}"] = told(made, student)
    engine.close()
    for name, rollout, callbacks in (
        ("colocated", FromStudent(sampling=kit.GREEDY, engine=engine), [SyncRolloutWeights()]),
        ("generate", FromStudent(sampling=kit.GREEDY), []),
    ):
        said, lost, _ = served.fit(
            two, place / name, rollout, *callbacks, steps=4, spec=StudentSpec(path=one)
        )
        found[name] = {"said": [plain(step) for step in said], "losses": lost}
    found["stale"] = served.column(place / "colocated", "train/rollout/stale_steps")
    found["apart"] = served.column(place / "colocated", "train/rollout/engine_apart")
    (place / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
