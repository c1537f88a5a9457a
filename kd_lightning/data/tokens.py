"""Text to ids, piece by piece: control tokens stay out of contents, pieces join as one text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import KDError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pieces:
    """Encodes a piece of text so that it continues what stands before it.

    Tokenizers in the manner of SentencePiece put a space before every text that they are given;
    an answer encoded on its own would begin with a space that generation never sees. A piece that
    continues text is encoded without it; one that follows a control token exactly as the
    tokenizer would encode it there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {token.content for token in added.values() if token.special}
        self.special = tuple(sorted(special | set(tokenizer.all_special_tokens)))
        """Texts that the tokenizer turns into control tokens."""
        self._first: Any = None
        self._next: Any = None
        self._hidden: dict[str, int] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            described = json.loads(backend.to_str())
            if described.get("normalizer") is not None:
                found = {t.content: i for i, t in added.items() if t.special and t.normalized}
                self._hidden = found  # other texts may become these once they are normalised
            self._first = self._next = _copy(described)
            plain = _without_prefix(described)
            if plain != described:
                self._next = _copy(plain)

    def encode(self, text: str, before: str = "", literal: bool = False) -> list[int]:
        """The ids of `text` standing after `before`.

        `literal`: no part of it becomes a control token.
        """
        if not text:
            return []
        ids = self._encode(text, before, literal)
        if self._hidden and not literal:
            made = sum(ids.count(i) for i in self._hidden.values())
            if made > sum(text.count(token) for token in self._hidden):
                raise KDError(
                    f"the tokenizer makes a control token of ordinary text ({text[:40]!r}) when it "
                    'normalises it: set "normalized": false for its special tokens in '
                    "tokenizer.json, or leave the text out"
                )
        return ids

    def _encode(self, text: str, before: str, literal: bool) -> list[int]:
        if self._first is None:
            ids = self._tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=literal
            )
            return list(ids)
        if not before:
            return _ids(self._first, text, literal)
        mark = next((token for token in self.special if before.endswith(token)), None)
        if mark is None or self._next is self._first:
            return _ids(self._next, text, literal)
        if literal:  # the control token must stay one: no way to have both in one call
            return _ids(self._first, text, literal)
        return _ids(self._first, mark + text, literal)[1:]


def _ids(backend: Any, text: str, literal: bool) -> list[int]:
    backend.encode_special_tokens = literal
    return list(backend.encode(text, add_special_tokens=False).ids)


def _copy(described: Any) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(described))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _without_prefix(part: Any) -> Any:
    """The tokenizer's description without anything that puts a space before a text."""
    if isinstance(part, list):
        return [_without_prefix(item) for item in part if _kind(item) != "Prepend"]
    if not isinstance(part, dict):
        return part
    changed: dict[str, Any] = {}
    for key, value in part.items():
        if key == "model" or key == "decoder" or key == "added_tokens":
            changed[key] = value
        elif key == "prepend_scheme":
            changed[key] = "never"
        elif key == "add_prefix_space":
            changed[key] = False
        elif _kind(value) == "Prepend":
            changed[key] = None
        else:
            changed[key] = _without_prefix(value)
    return changed


def _kind(part: Any) -> str:
    return str(part.get("type", "")) if isinstance(part, dict) else ""
