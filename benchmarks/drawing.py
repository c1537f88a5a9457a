"""Engines that draw answers, beside each other: CPU seconds and memory over sizes and lengths.

    python -m benchmarks.drawing

Random Llamas in float32 draw at temperature 1, every answer by its own random numbers, so that all
engines make the same words. Lengths follow from how many ids end an answer: of nearly equal
probability each, they make an answer end at every token with the same chance. Larger models by
`--sizes 24M 110M`: minutes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.harness import Report, alone, growth, median, parser
from kd_lightning.application import quiet
from kd_lightning.models import recorded
from kd_lightning.models.attention import Attention, choose
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.rollouts.continuous import ContinuousBatching
from kd_lightning.rollouts.engines import Engine, Generate
from kd_lightning.types import Sampling


class Size(NamedTuple):
    """A Llama."""

    width: int
    layers: int
    inner: int
    heads: int
    key_heads: int
    vocab: int


SIZES = {
    "tiny": Size(16, 2, 32, 2, 2, 64),
    ".3M": Size(64, 5, 172, 8, 4, 512),
    "4M": Size(192, 6, 512, 6, 6, 2048),
    "24M": Size(512, 6, 1408, 8, 4, 4096),
    "110M": Size(768, 12, 2048, 12, 12, 16384),
}


class Unrecorded(Generate):
    """As for models whose steps cannot be recorded (adapters, experts)."""

    def draw(self, *given: Any) -> list[Drawn]:
        """As `Generate`."""
        with patch.object(recorded, "possible", lambda *_: False):
            return super().draw(*given)


ENGINES: dict[str, Callable[[], Engine]] = {
    "Generate": Generate,
    "Generate, not recorded": Unrecorded,
    "ContinuousBatching": ContinuousBatching,
}

ENDS = {"equal": 0.0, "geometric": 4.0}
"""By how much the mean answer is shorter than the longest; 0: one id ends an answer."""


def model(size: Size, ends: int) -> CausalLM:
    """Random weights; ids 1 to `ends` end an answer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocab, hidden_size=size.width, num_hidden_layers=size.layers,
        intermediate_size=size.inner, num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads, max_position_embeddings=2048,
    )  # fmt: skip
    attention: Attention = choose(
        "auto", "auto", config, torch.device("cpu"), torch.float32, trained=True
    )
    config._attn_implementation = attention.name
    made = LlamaForCausalLM(config).eval()
    made.generation_config.eos_token_id = list(range(1, ends + 1))
    words = models.WordLevel({f"w{i}": i for i in range(size.vocab)}, "w0")
    known = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="w0", eos_token="w1"
    )
    return CausalLM(made, known, attention=attention)


def draws(size: Size, prompts: int, each: int, room: int, seed: int) -> list[Draw]:
    """`each` answers to every prompt of 8 to 32 tokens."""
    source = torch.Generator().manual_seed(seed)
    sampling = Sampling(seed=seed, temperature=1.0)
    found = []
    for _ in range(prompts):
        length = int(torch.randint(8, 33, (1,), generator=source))
        prompt = torch.randint(size.vocab // 2, size.vocab, (length,), generator=source)
        found += [Draw(tuple(prompt.tolist()), sampling, room, i) for i in range(each)]
    return found


def measured(
    engine: str, name: str, lengths: str, prompts: int, each: int, room: int, repeats: int
) -> dict[str, Any]:
    """CPU seconds of drawings, and by how much memory grows in the first; in this process.

    The first one counts only where it is the only one: in it a step is recorded.
    """
    quiet()
    torch.set_num_threads(1)
    size = SIZES[name]
    share = ENDS[lengths] / room
    student = model(size, max(1, round(share * size.vocab)))
    drawer = ENGINES[engine]()
    told: list[list[Drawn]] = []
    start = time.process_time()
    grown = growth(lambda: told.append(drawer.draw(student, draws(size, prompts, each, room, 99))))
    seconds = [time.process_time() - start]
    for seed in range(repeats):
        asked = draws(size, prompts, each, room, seed)
        start = time.process_time()
        told.append(drawer.draw(student, asked))
        seconds.append(time.process_time() - start)
    tokens = [sum(len(one.tokens) for one in some) for some in told]
    words = hash(tuple(one.tokens for some in told for one in some))
    first = 1 if repeats else 0
    return {"seconds": seconds[first:], "tokens": tokens[first:], "grown": grown, "words": words}


def main(arguments: list[str] | None = None) -> Report:
    """Print the table."""
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", choices=list(SIZES))
    options.add_argument("--lengths", nargs="+", choices=list(ENDS), default=list(ENDS))
    options.add_argument("--requests", nargs="+", default=["8x1", "64x1"])
    options.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    options.add_argument("--room", type=int, help="the most tokens of an answer")
    asked = options.parse_args(arguments)
    full = asked.preset == "full"
    sizes = asked.sizes or ([".3M", "4M"] if full else ["tiny"])
    room = asked.room or (128 if full else 24)
    report = Report(
        "drawing",
        f"Random Llamas draw answers of at most {room} tokens, one thread",
        preset=asked.preset,
    )
    os.environ["PYTHONHASHSEED"] = "0"
    panels: dict[str, dict[str, float]] = {}
    for name in sizes:
        for lengths in asked.lengths:
            for requests in asked.requests:
                prompts, each = map(int, requests.split("x"))
                seen = {}
                for engine in asked.engines:
                    what = (engine, name, lengths, prompts, each, room, asked.repeats)
                    ran = seen[engine] = alone(measured, *what, preset=asked.preset)
                    report.row(
                        size=name, lengths=lengths, requests=requests, engine=engine,
                        CPU=median(ran["seconds"]), tokens=median(ran["tokens"]),
                        MB=round(ran["grown"] / 1e6, 1),
                        same=ran["words"] == seen[asked.engines[0]]["words"],
                    )  # fmt: skip
                panels[f"{name} {lengths} {requests}"] = {
                    engine: median(ran["seconds"]) for engine, ran in seen.items()
                }
    report.finish(Path(asked.out), panels if len(panels) < 4 else {}, "CPU seconds")
    return report


if __name__ == "__main__":
    main()
