"""Rules that need no model: length, words, patterns, refusals, form."""

from __future__ import annotations

import re

from kd_lightning.curate.filter import Filter
from kd_lightning.curate.texts import Names, at_least, named, text_of, words
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record

REFUSALS = (
    "as an ai",
    "as a language model",
    "i am only a language model",
    "i'm sorry, but",
    "i am sorry, but",
    "i'm unable to",
    "i am unable to",
    "i can't help with",
    "i cannot help with",
    "i can't assist",
    "i cannot assist",
    "i won't be able to",
    "i do not have access to",
    "i don't have access to",
)
"""What an answer that refuses begins with or holds, in lower case."""


class Length(Filter):
    """Keep texts that are neither too short nor too long."""

    def __init__(
        self,
        field: Names = "answer",
        min_words: int = 0,
        max_words: int | None = None,
        min_chars: int = 1,
        max_chars: int | None = None,
    ) -> None:
        """Store the settings.

        Args:
            field: Field, or several whose texts count together.
            min_words: Fewest words.
            max_words: Most words; None: any number.
            min_chars: Fewest characters, without space at the ends.
            max_chars: Most characters; None: any number.
        """
        at_least("min_words", min_words, 0)
        at_least("min_chars", min_chars, 0)
        self.field = field
        self.min_words = min_words
        self.max_words = max_words
        self.min_chars = min_chars
        self.max_chars = max_chars

    def fault(self, record: Record) -> str:
        text = text_of(record, self.field).strip()
        count = len(words(text))
        if len(text) < self.min_chars or count < self.min_words:
            return f"{named(self.field)} too short" if text else f"no {named(self.field)}"
        over = self.max_words is not None and count > self.max_words
        if over or (self.max_chars is not None and len(text) > self.max_chars):
            return f"{named(self.field)} too long"
        return ""


class LengthRatio(Filter):
    """Keep records whose one text is not much shorter or longer than another, in words."""

    def __init__(
        self, field: str = "answer", to: str = "prompt", least: float = 0.0, most: float = 10.0
    ) -> None:
        """Store the settings.

        Args:
            field: The text that is measured.
            to: The text that it is measured against.
            least: Smallest ratio of their words.
            most: Largest ratio.
        """
        self.field = field
        self.to = to
        self.least = least
        self.most = most

    def fault(self, record: Record) -> str:
        base = len(words(text_of(record, self.to)))
        if not base:
            return f"no {self.to}"
        ratio = len(words(text_of(record, self.field))) / base
        if ratio < self.least:
            return f"{self.field} too short beside {self.to}"
        return f"{self.field} too long beside {self.to}" if ratio > self.most else ""


class Matches(Filter):
    """Keep, or drop, texts in which a regular expression is found."""

    def __init__(
        self,
        pattern: str = r"\S",
        field: Names = "answer",
        keep: bool = True,
        whole: bool = False,
        ignore_case: bool = False,
        reason: str = "",
    ) -> None:
        """Store the settings.

        Args:
            pattern: The regular expression (of Python).
            field: Field, or several.
            keep: Whether texts that match stay, or those that do not.
            whole: Whether the whole text has to match.
            ignore_case: Whether upper and lower case are the same.
            reason: What the report says; '': the field and the pattern.
        """
        try:
            re.compile(pattern)
        except re.error as error:
            raise KDError(f"{pattern!r} is no regular expression ({error}): correct it") from None
        self.pattern = pattern
        self.field = field
        self.keep = keep
        self.whole = whole
        self.ignore_case = ignore_case
        self.reason = reason

    def fault(self, record: Record) -> str:
        find = re.fullmatch if self.whole else re.search
        flags = re.IGNORECASE if self.ignore_case else 0
        found = find(self.pattern, text_of(record, self.field), flags) is not None
        if found == self.keep:
            return ""
        verb = "lacks" if self.keep else "holds"
        return self.reason or f"{named(self.field)} {verb} {self.pattern}"


class Keywords(Filter):
    """Drop texts that hold one of some words or phrases (whole words, any case)."""

    def __init__(self, blacklist: list[str], field: Names = "prompt") -> None:
        """Store the settings.

        Args:
            blacklist: The words or phrases.
            field: Field, or several.
        """
        if empty := [word for word in blacklist if not words(word)]:
            raise KDError(f"blacklist holds {empty[0]!r}, which is no word: use Matches for signs")
        self.blacklist = blacklist
        self.field = field

    def fault(self, record: Record) -> str:
        text = f" {' '.join(words(text_of(record, self.field)))} "
        for word in self.blacklist:
            if f" {' '.join(words(word))} " in text:
                return f"{named(self.field)} holds {word!r}"
        return ""


class NoRefusal(Filter):
    """Drop answers in which the generator refuses or speaks of itself."""

    def __init__(
        self,
        field: Names = "answer",
        markers: list[str] | None = None,
        within: int | None = 200,
    ) -> None:
        """Store the settings.

        Args:
            field: Field, or several.
            markers: Texts that give a refusal away, in any case; None: a list of ours.
            within: Look into the first so many characters only; None: into all.
        """
        self.field = field
        self.markers = list(REFUSALS) if markers is None else markers
        self.within = within

    def fault(self, record: Record) -> str:
        text = text_of(record, self.field)[: self.within].lower().replace("\u2019", "'")
        return "refusal" if any(marker.lower() in text for marker in self.markers) else ""
