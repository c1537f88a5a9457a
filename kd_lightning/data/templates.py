"""A conversation as text, with the exact place of every turn that something is learned from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import KDError
from kd_lightning.security.time_limit import TooSlowError, time_limit
from kd_lightning.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "### Assistant:\n{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}"
    "### {{ message.role | capitalize }}:\n{{ message.content }}"
    "{% endif %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""The template of a tokenizer that has none: a heading for each turn, and the end-of-text token
after each answer. For example `<s>### User:\\nHello\\n\\n### Assistant:\\nHi</s>`."""

SECONDS = 5.0
"""The longest that a template may work on one conversation."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PRIVATE = 0xF0000  # private-use signs: no text means anything by them, no template strips them


@dataclass(frozen=True)
class Span:
    """The part of a rendered text that one turn is learned from."""

    turn: int
    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    """Control tokens that stood in contents are replaced by the signs in `literals`."""
    spans: tuple[Span, ...]
    """In order, without overlap."""
    cuts: tuple[int, ...]
    """Where the text is cut for encoding: generation starts and ends at these places."""
    literals: Mapping[str, str]
    """Sign to the text that it stands for, which must not become a control token."""
    ended: bool
    """Whether a control token ends the last answer."""


class Template:
    """Renders conversations with a chat template and finds the answers in the text.

    A template with `{% generation %}` marks says itself which text is the assistant's. For one
    without, a turn begins where the conversation before it, rendered with a generation prompt,
    ends, and it ends with what the template writes after the turn's content (its end-of-turn
    token), without the white space that follows. The content's place is found by rendering once
    more with another content: so templates that trim a content or shorten earlier turns work.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "auto",
        arguments: Mapping[str, Any] | None = None,
        special: Sequence[str] = (),
    ) -> None:
        """`template`: `auto`, `plain` or a jinja file; `arguments`: further ones for the template;
        `special`: texts of control tokens.
        """
        self._jinja = _load(tokenizer, template)
        self._marked = bool(_MARKED.search(self._jinja))
        self._context = {**tokenizer.special_tokens_map, **(arguments or {})}
        self._special = tuple(token for token in special if token)

    @property
    def source(self) -> str:
        """The template itself."""
        return self._jinja

    def conversation(self, messages: Sequence[Message], row: str, ask: bool = False) -> Rendered:
        """The whole conversation; `ask`: followed by the generation prompt."""
        safe, literals = self._defuse(messages)
        turns = [{"role": m.role, "content": m.content} for m in safe]
        text, marks = self._render(turns, row, ask)
        answers = [i for i, m in enumerate(safe) if m.role == "assistant"]
        last = answers[-1] if answers and not ask else None
        spans: list[Span] = []
        cuts: set[int] = set()
        begin = 0
        for i, message in enumerate(safe):
            if message.role != "assistant" and not message.learned:
                continue
            if message.role == "assistant" and self._marked:
                marked = self._marked_place(turns, i, text, row, ask, marks, answers)
                start, end = marked or (0, 0)
            else:
                start, end = self._locate(turns, i, text, row, ask)
            if message.role == "assistant":
                before = self._render(turns[:i], row, True)[0]
                if text.startswith(before):
                    if start < end <= len(before):
                        raise KDError(
                            f"row {row}, turn {i + 1}: the {{% generation %}} marks of the chat "
                            "template enclose something before this answer: set another "
                            "--data.template (one that marks the answers, or marks nothing)"
                        )
                    cuts.add(len(before))
                    start = start if self._marked else len(before)
                elif i == last:
                    raise KDError(
                        f"row {row}, turn {i + 1}: the chat template writes the conversation "
                        "before this answer in another way once the answer follows, so what is "
                        "learned would not be what is generated: set another --data.template"
                    )
            begin = start
            if end > start:
                spans.append(Span(i, start, end, message.learned))
            cuts |= {start, end}
        ended = last is None or any(token in text[begin:] for token in self._special)
        return Rendered(text, tuple(spans), tuple(sorted(cuts)), literals, ended)

    def _marked_place(
        self,
        turns: list[dict[str, str]],
        i: int,
        text: str,
        row: str,
        ask: bool,
        marks: list[tuple[int, int]],
        answers: list[int],
    ) -> tuple[int, int] | None:
        """What the template marks of turn `i`; None where it chose to mark nothing of it."""
        if len(marks) == len(answers):
            return marks[answers.index(i)]
        start, end = self._content(turns, i, text, row, ask)
        inside = [mark for mark in marks if mark[0] <= start and end <= mark[1]]
        return inside[0] if inside else None

    def _render(
        self, turns: list[dict[str, str]], row: str, ask: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with time_limit(SECONDS):
                rendered: Any = render_jinja_template(
                    conversations=[turns],
                    chat_template=self._jinja,
                    return_assistant_tokens_mask=self._marked,
                    add_generation_prompt=ask,
                    **self._context,
                )
        except TooSlowError:
            raise KDError(
                f"row {row}: the chat template works longer than {SECONDS:g} seconds on one "
                "conversation: set another --data.template"
            ) from None
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, ArithmeticError) as error:
            roles = ", ".join(turn["role"] for turn in turns) or "no turns"
            raise KDError(
                f"row {row}: the chat template cannot render this conversation ({roles}): {error}"
            ) from None
        texts, marks = rendered
        return texts[0], list(marks[0]) if marks else []

    def _locate(
        self, turns: list[dict[str, str]], i: int, text: str, row: str, ask: bool
    ) -> tuple[int, int]:
        """Start of the content of turn `i`, and end of the turn."""
        start, stop = self._content(turns, i, text, row, ask)
        alone = turns[: i + 1]
        upto = self._render(alone, row, False)[0]
        _, stop_alone = self._content(alone, i, upto, row, False)
        closing = upto[stop_alone:]
        closing = closing[: _shared(closing, text[stop:])].rstrip()
        return start, stop + len(closing)

    def _content(
        self, turns: list[dict[str, str]], i: int, text: str, row: str, ask: bool
    ) -> tuple[int, int]:
        """Where the content of turn `i` stands in `text`: what changes when it does."""
        sign = _unused(text, 1)[0]
        changed = [*turns[:i], {**turns[i], "content": sign}, *turns[i + 1 :]]
        other = self._render(changed, row, ask)[0]
        if other.count(sign) != 1:
            raise KDError(
                f"row {row}, turn {i + 1}: the chat template does not write the content of this "
                f"{turns[i]['role']} turn exactly once, so what is learned from it is not known: "
                "set another --data.template or the turn's weight to 0"
            )
        start = _shared(text, other)
        end = len(text) - _shared(text[::-1], other[::-1])
        return start, max(start, end)

    def _defuse(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """Contents in which a private sign stands for the text of each control token."""
        joined = "".join(m.content for m in messages)
        present = [token for token in self._special if token in joined]
        if not present:
            return list(messages), {}
        signs = dict(zip(present, _unused(joined, len(present)), strict=True))
        safe = []
        for message in messages:
            content = message.content
            for token in sorted(present, key=len, reverse=True):
                content = content.replace(token, signs[token])
            safe.append(Message(message.role, content, message.weight))
        return safe, {sign: token for token, sign in signs.items()}


def _load(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    own = tokenizer.chat_template
    if template == "auto" and own is not None:
        return str(tokenizer.get_chat_template())
    if template in ("auto", "plain"):
        if tokenizer.eos_token is None:
            raise KDError(
                "the tokenizer has neither a chat template nor an end-of-text token, so no answer "
                "could end: set --data.template=<a jinja file> or another tokenizer"
            )
        return PLAIN
    path = Path(template).expanduser()
    if not path.is_file():
        raise KDError(f"--data.template: {template} is not auto, plain or an existing jinja file")
    return path.read_text(encoding="utf-8")


def _unused(text: str, count: int) -> list[str]:
    """Signs that do not occur in `text`."""
    taken = set(text)
    free = (chr(code) for code in range(_PRIVATE, _PRIVATE + count + len(taken)))
    return [sign for sign in free if sign not in taken][:count]


def _shared(a: str, b: str) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
