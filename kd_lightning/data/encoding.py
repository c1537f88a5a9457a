"""An example as ids, each with the weight that it has in the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kd_lightning.data.templates import Rendered, Template
from kd_lightning.data.tokens import Pieces
from kd_lightning.errors import KDError
from kd_lightning.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """A row ready to be collated."""

    example: Example
    ids: NDArray[np.int32]  # [T]
    weights: NDArray[np.float32]  # [T]: how much predicting ids[t] counts; 0: not learned
    group: str | None = None  # neighbours with one name are answers that stay together
    reward: float | None = None  # how good the answer is; nan: nobody judged it; None: no question

    @property
    def answered(self) -> int:
        """How many tokens are learned (the first one never is: nothing predicts it)."""
        return int(np.count_nonzero(self.weights[1:]))

    @cached_property
    def key(self) -> bytes:
        """Digest of the tokens and of which of them are learned: what a teacher's cache goes by."""
        digest = hashlib.blake2b(self.ids.astype("<i4").tobytes(), digest_size=16)
        digest.update(np.packbits(self.weights != 0).tobytes())
        return digest.digest()

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int, keep: int = 0) -> Encoded:
        """The part from `start` to `stop`, with the first `keep` tokens before it."""
        return replace(
            self,
            ids=np.concatenate([self.ids[:keep], self.ids[max(start, keep) : stop]]),
            weights=np.concatenate([self.weights[:keep], self.weights[max(start, keep) : stop]]),
        )


class Encoder:
    """Examples to ids: with a chat template, or as documents.

    The text is encoded in pieces, cut where generation begins and ends. So the ids of a prompt in
    training are the ids of the same prompt at generation, and no token straddles the border of a
    mask.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "auto",
        arguments: dict[str, object] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._pieces = Pieces(tokenizer)
        self._chosen = (template, arguments)
        self._made: Template | None = None

    @property
    def template(self) -> Template:
        """The chat template; made at its first use, since documents need none."""
        if self._made is None:
            name, arguments = self._chosen
            self._made = Template(self._tokenizer, name, arguments, self._pieces.special)
        return self._made

    @property
    def bos(self) -> int | None:
        """The id that begins a text, if the tokenizer has one."""
        bos: int | None = self._tokenizer.bos_token_id
        return bos

    def prompt(self, example: Example) -> list[int]:
        """What a model is given to answer: the turns before the last answer, and its heading."""
        if example.plain:
            return [self.bos] if self.bos is not None else []
        ids, _ = self._encode(self.template.conversation(example.prompt, example.id, ask=True))
        return ids

    def conversation(self, example: Example) -> Encoded:
        """The whole conversation with its weights."""
        rendered = self.template.conversation(example.messages, example.id)
        last = example.messages[-1]
        unended = (
            bool(rendered.spans)
            and not rendered.ended
            and last.role == "assistant"
            and last.learned
        )
        if unended:  # the end-of-text token ends the answer, in place of the template's white space
            rendered = replace(rendered, text=rendered.text[: rendered.spans[-1].end])
        ids, weights = self._encode(rendered)
        if unended:
            ids.append(self._end("eos", example))
            weights.append(last.learned)
        return _encoded(example, ids, weights)

    def document(self, example: Example, end: str | None) -> Encoded:
        """A whole text; `end`: the token after it, `eos`, `bos` or none."""
        message = example.messages[0]
        ids = [self.bos] if self.bos is not None else []
        ids += self._pieces.encode(message.content, literal=True)
        if end is not None:
            ids.append(self._end(end, example))
        return _encoded(example, ids, [message.learned] * len(ids))

    def _end(self, which: str, example: Example) -> int:
        found = {"eos": self._tokenizer.eos_token_id, "bos": self._tokenizer.bos_token_id}[which]
        if found is None:
            raise KDError(
                f"row {example.id} needs the tokenizer's {which} token at its end, and the "
                "tokenizer has none: choose another tokenizer or another end"
            )
        return int(found)

    def _encode(self, rendered: Rendered) -> tuple[list[int], list[float]]:
        text = rendered.text
        borders = sorted({0, *(cut for cut in rendered.cuts if cut < len(text)), len(text)})
        ids: list[int] = []
        weights: list[float] = []
        for start, stop in pairwise(borders):
            weight = next((s.weight for s in rendered.spans if s.start <= start < s.end), 0.0)
            before = text[max(0, start - 64) : start]
            for part, literal in _parts(text[start:stop], rendered):
                new = self._pieces.encode(part, before, literal)
                ids += new
                weights += [weight] * len(new)
                if new or before:
                    before = "text" if literal else part  # written out: no control token
        return ids, weights


def _parts(text: str, rendered: Rendered) -> Iterable[tuple[str, bool]]:
    """The text cut at the signs that stand for the texts of control tokens."""
    if not rendered.literals:
        yield text, False
        return
    plain = ""
    for sign in text:
        if sign in rendered.literals:
            if plain:
                yield plain, False
            yield rendered.literals[sign], True
            plain = ""
        else:
            plain += sign
    if plain:
        yield plain, False


def _encoded(example: Example, ids: list[int], weights: list[float]) -> Encoded:
    return Encoded(example, np.asarray(ids, np.int32), np.asarray(weights, np.float32))
