"""Prompts and answers as a local model's ids, and ids as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kd_lightning.data.encoding import Encoder
from kd_lightning.data.tokens import Pieces
from kd_lightning.errors import KDError
from kd_lightning.types import Example, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEFORE = 64
"""Characters before an answer that decide how its first token is cut."""

TAIL = 16
"""Tokens before a token that decide how it is written."""


class Wording:
    """The data modules' encoding for conversations that nobody answered yet.

    A prompt has the ids that a data module with the same template gives the model to answer; an
    answer has the ids that it would have in training, without what ends the turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "auto",
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer, template, dict(arguments or {}))
        self._pieces = Pieces(tokenizer)

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """What the model is given."""
        ids = self._plain(prompt) if prompt.plain else self._encoder.prompt(_example(prompt))
        if not ids:
            raise KDError(
                "the prompt is empty, and the tokenizer has no token that begins a text: write "
                "something into the prompt"
            )
        return tuple(ids)

    def _plain(self, prompt: Prompt) -> list[int]:
        bos = self._encoder.bos
        begun = [] if bos is None else [bos]
        return begun + self._pieces.encode(_text(prompt), literal=True)

    def answer(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """The ids of an answer's text after the prompt."""
        if prompt.plain:
            before = _text(prompt)
        else:
            asked = _example(prompt)
            before = self._encoder.template.conversation(asked.prompt, asked.id, ask=True).text
        literal = prompt.plain or any(sign in text for sign in self._pieces.special)
        return tuple(self._pieces.encode(text, before[-BEFORE:], literal))

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """What ids say after others: spaces at their beginning stay."""
        tail = list(prompt[-TAIL:])
        before, whole = self._decoded(tail), self._decoded([*tail, *ids])
        return whole[len(before) :] if whole.startswith(before) else self._decoded(ids)

    def pieces(self, prompt: Sequence[int], ids: Sequence[int]) -> tuple[str, ...]:
        """The same, token by token."""
        row = [*prompt[-TAIL:], *ids]
        first = len(row) - len(ids)
        return tuple(self.text(row[:i], row[i : i + 1]) for i in range(first, len(row)))

    def _decoded(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


def _text(prompt: Prompt) -> str:
    return "".join(message.content for message in prompt.messages)


def beginning(prompt: Prompt) -> str:
    """The prompt's last words' beginning, for messages."""
    text = prompt.messages[-1].content if prompt.messages else ""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _example(prompt: Prompt) -> Example:
    if not prompt.messages or prompt.messages[-1].role == "assistant":
        raise KDError(
            f"the prompt {beginning(prompt)} ends with a turn of the assistant, so there is "
            "nothing to answer: end it with another role's turn"
        )
    return Example(beginning(prompt), (*prompt.messages, Message("assistant", "")))
