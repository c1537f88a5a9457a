"""Answers by transformers' continuous batching, each drawn by numbers of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from kd_lightning.errors import KDError
from kd_lightning.models import drawing
from kd_lightning.models.attention import PACKS
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.drawing import Draw, Drawn
from kd_lightning.models.generation import end_tokens
from kd_lightning.models.modes import evaluating
from kd_lightning.models.picking import pick
from kd_lightning.rollouts import paged
from kd_lightning.rollouts.engines import Before, Engine
from kd_lightning.types import Sampling

PAGE = 32
"""Tokens of a page of the cache."""
BITS = 2**31
"""Numbers of [0, 1) go to the device as integers below this."""


class ContinuousBatching(Engine):
    """A row that has ended makes room for the next one: for answers of very unlike lengths.

    The weights are the model's own, as they are at the moment; the cache is dropped after every
    drawing. transformers draws all requests from one generator; here a processor of ours picks each
    token by the request's own number, so that an answer is that of `Generate` up to rounding
    (`Auto` says what that means), wherever its row is, and a resumed run the undisturbed one.

    `Auto` says where it is the quicker on a CPU; on a GPU it was not measured. It refuses sharded
    weights, autocast, capped attention, generation settings and rollouts that change the scores.
    """

    def __init__(self, rows: int = 64, batch_tokens: int = 512) -> None:
        """Store the settings.

        Args:
            rows: Answers in the making at once: how large the cache is.
            batch_tokens: Tokens that one forward pass reads at most, of prompts and answers.
        """
        if rows < 1 or batch_tokens < rows:
            raise KDError(
                f"rows must be at least 1 and batch_tokens at least rows, not {rows} and "
                f"{batch_tokens}"
            )
        self.rows = rows
        self.batch_tokens = batch_tokens

    def draw(
        self, model: CausalLM, draws: Sequence[Draw], before: Before | None = None
    ) -> list[Drawn]:
        if before is not None:
            raise KDError("ContinuousBatching takes no change of scores: write engine: Generate")
        lacking = lack(model)
        if lacking is not None:
            raise KDError(f"ContinuousBatching cannot draw, {lacking}: write engine: Generate")
        kinds: dict[Sampling, list[int]] = {}
        for i, draw in enumerate(draws):
            how = draw.sampling
            kinds.setdefault(Sampling(0, how.temperature, how.top_p, how.top_k), []).append(i)
        found: dict[int, Drawn] = {}
        with evaluating(model), untouched(model.device):
            for kind, chosen in kinds.items():
                made = self._draw(model, [draws[i] for i in chosen], kind)
                found.update(zip(chosen, made, strict=True))
        return [found[i] for i in range(len(draws))]

    def _draw(self, model: CausalLM, draws: Sequence[Draw], kind: Sampling) -> list[Drawn]:
        ends = end_tokens(model.transformer, model.tokenizer)
        longest = max(len(draw.prompt) + draw.room for draw in draws)
        settings = transformers.ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=(longest // PAGE + 2) * min(self.rows, len(draws)) + 1,
            max_batch_tokens=self.batch_tokens,
            max_requests_per_batch=min(self.rows, len(draws)),
            allow_block_sharing=False,
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
            seed=0,
        )
        how = GenerationConfig(do_sample=False, eos_token_id=ends, max_new_tokens=longest)
        transformer: Any = model.transformer
        picking = picking_by(Numbers(draws, kind), kind, model.head.vocab)
        with paged.attending(transformer) as attention:
            manager = transformer.init_continuous_batching(how, settings)
            manager.logit_processor.logits_processor = LogitsProcessorList([picking])
            manager.logit_processor.tensors_required = 1
            manager.logit_processor.do_processing = True
            for i, draw in enumerate(draws):
                manager.add_request(
                    list(draw.prompt), str(i), max_new_tokens=draw.room, eos_token_id=ends
                )
            try:
                paged.run(manager, transformer, attention)
            finally:
                manager.destroy()
        told = picking.told(len(draws))
        made = collected(manager, len(draws))
        return [self._made(out, ends, each) for out, each in zip(made, told, strict=True)]

    def _made(self, output: Any, ends: list[int], logprobs: list[float]) -> Drawn:
        if output.error is not None:
            raise KDError(
                f"continuous batching gave an answer up ({output.error}): write engine: Generate, "
                "or fewer rows"
            )
        tokens: list[int] = output.generated_tokens
        return Drawn(tuple(tokens), bool(tokens) and tokens[-1] in ends, tuple(logprobs))


def lack(model: CausalLM) -> str | None:
    """Why continuous batching cannot draw with a model now; None: it can."""
    text = model.transformer.config.get_text_config()
    changes = drawing.changes(model)
    if not paged.known():
        return "this transformers batches in another way than 5.23, for which it was written"
    if model.placement is not None:
        return "its weights are sharded"
    if text.model_type not in PACKS:
        return f"{text.model_type} is not known to keep packed sequences apart"
    if getattr(text, "attn_logit_softcapping", None):
        return f"{text.model_type} caps its attention"
    if changes:
        return f"the model's generation settings change scores ({', '.join(sorted(changes))})"
    if torch.is_autocast_enabled(model.device.type):
        return "autocast gives keys another type than the cache's"
    return None


class Numbers:
    """The number of each request's next token."""

    def __init__(self, draws: Sequence[Draw], kind: Sampling) -> None:
        self._prompts = [len(draw.prompt) for draw in draws]
        self._shares: list[Tensor] = []
        if kind.temperature > 0:
            self._shares = [(draw.shares() * BITS).to(torch.int32) for draw in draws]

    def __call__(self, requests: Sequence[Any]) -> Tensor:
        """Of those that get a new token now, `[requests]` int32."""
        found = []
        for request in requests:
            state, row = request.state, int(request.state.request_id)
            # a request that lost its place in the cache has its tokens among its prompt
            made = len(state.initial_tokens) + len(state.generated_tokens) - self._prompts[row]
            found.append(int(self._shares[row][made]) if self._shares else 0)
        return torch.tensor(found, dtype=torch.int32)


def picking_by(numbers: Numbers, kind: Sampling, vocab: int) -> Any:
    """A processor that leaves to each request its token; greedy requests keep their scores."""
    base: Any = paged.module("cb_logits_processors").ContinuousBatchingLogitsProcessor

    class Picking(base):  # type: ignore[misc]
        supported_kwargs: dict[str, type] = {}  # noqa: RUF012 (as transformers has it)
        ignored_kwargs = ()

        def __init__(self) -> None:
            self._now: list[int] = []
            self._told: list[tuple[list[int], Tensor]] = []

        def fill_defaults(self, int32_tensor: Tensor) -> None:
            int32_tensor.fill_(0)

        def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
            self._now = [int(request.state.request_id) for request in requests_with_new_token]
            return numbers(requests_with_new_token)

        def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
            known = scores[:, :vocab]  # what follows are no tokens
            if kind.temperature == 0:
                drawn = known.argmax(-1)
            else:
                shares = tensor_arg[: len(scores)].to(scores.device, torch.float64) / BITS
                drawn = pick(known, shares, kind)
            self._told.append((self._now, known.log_softmax(-1).gather(-1, drawn[:, None])[:, 0]))
            return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)

        def told(self, number: int) -> list[list[float]]:
            """Log p of each request's tokens at temperature 1."""
            found: list[list[float]] = [[] for _ in range(number)]
            for rows, values in self._told:
                for row, value in zip(rows, values.tolist(), strict=False):  # prompts in parts
                    found[row].append(value)
            return found

    return Picking()


def collected(manager: Any, number: int) -> list[Any]:
    """The outputs in the order of their requests."""
    outputs = manager.output_router.output_queue
    found = {}
    while not outputs.empty():
        output = outputs.get()
        found[int(output.request_id)] = output
    if len(found) < number:
        raise KDError(
            f"continuous batching stopped with {len(found)} of {number} answers: write "
            "engine: Generate"
        )
    return [found[i] for i in range(number)]


@contextmanager
def untouched(device: torch.device) -> Iterator[None]:
    """Random numbers of the run go on as if nothing had been drawn: the manager seeds them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
