"""What was said once is said again, and what was not is refused by its beginning."""

from __future__ import annotations

import random

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers.generator import Kind, Reply, Request
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.replay import SPOKEN, Replay
from kd_lightning.teachers.scripted import Scripted
from kd_lightning.types import Prompt, Sampling, Signal

PROMPTS = [Prompt.user(t) for t in ("one", "two", "three")]


def loud(text: str, rng: random.Random) -> str:
    return f"{text.upper()} {rng.randint(0, 999)}"


class Counted(Scripted):
    """Counts what it is asked; fails where it is told to."""

    def __init__(self, fails: str = "", **more) -> None:
        super().__init__(loud, **more)
        self.fails = fails
        self.asked = 0

    def replies(self, requests):
        for i, request in enumerate(requests):
            self.asked += 1
            if request.prompt.messages[-1].content == self.fails:
                yield [(i, Reply(failure="not today"))]
            else:
                yield [(i, self._reply(request))]


def requests(seed: int = 0) -> list[Request]:
    return [Request(Kind.GENERATE, p, Sampling(9, seed=seed)) for p in PROMPTS]


def test_a_record_repeats_without_the_generator(tmp_path):
    inner = Counted(licence="mit-no-train", name="loud one")
    with_inner = Replay(str(tmp_path), inner, "record")
    said = with_inner.ask(requests())
    with_inner.close()
    alone = Replay(str(tmp_path), mode="replay")
    assert alone.ask(requests()) == said and inner.asked == 3
    assert alone.ask(requests()[::-1]) == said[::-1]
    assert (alone.name, alone.licence, alone.offers) == (
        "loud one", "mit-no-train", {Signal.TEXT},
    )  # fmt: skip
    assert alone.identity == with_inner.identity


def test_what_was_not_recorded_is_named(tmp_path):
    recording = Replay(str(tmp_path), Counted(), "record")
    recording.ask(requests())
    recording.close()
    alone = Replay(str(tmp_path), mode="replay")
    with pytest.raises(KDError, match=r"no reply .*'four and a l"):
        alone.generate([Prompt.user("four and a long tail " * 9)])
    with pytest.raises(KDError, match=r"no reply .*'one'"):
        alone.ask(requests(seed=1))


def test_auto_asks_only_for_what_is_missing(tmp_path):
    first = Counted()
    recording = Replay(str(tmp_path), first)
    half = recording.ask(requests()[:2])
    recording.close()
    second = Counted()
    going_on = Replay(str(tmp_path), second)
    assert going_on.ask(requests())[:2] == half
    assert (first.asked, second.asked) == (2, 1)
    assert going_on.ask(requests())[:2] == half and second.asked == 1
    recording = Replay(str(tmp_path), second, "record")
    recording.ask(requests())
    assert second.asked == 4  # asks for everything


def test_failures_are_not_recorded(tmp_path):
    replay = Replay(str(tmp_path), Counted(fails="two"))
    assert [r.failure for r in replay.ask(requests())] == ["", "not today", ""]
    replay.close()
    with pytest.raises(KDError, match="'two'"):
        Replay(str(tmp_path), mode="replay").ask(requests())


def test_a_torn_record_loses_the_torn_reply_alone(tmp_path):
    replay = Replay(str(tmp_path), Counted())
    said = replay.ask(requests())
    replay.close()
    file = tmp_path / SPOKEN
    file.write_bytes(file.read_bytes()[:-9])
    inner = Counted()
    assert Replay(str(tmp_path), inner).ask(requests()) == said and inner.asked == 1


def test_a_record_of_another_generator_is_refused(tmp_path):
    Replay(str(tmp_path), Counted(), "record").open()
    with pytest.raises(KDError, match="write another `path`"):
        Replay(str(tmp_path), Counted(seed=1)).open()
    with pytest.raises(KDError, match="there is no record"):
        Replay(str(tmp_path / "nothing"), mode="replay").open()
    with pytest.raises(KDError, match="mode=auto asks a generator"):
        Replay(str(tmp_path))


def test_scores_and_options_of_a_model_are_repeated_to_the_last_bit(stories, tmp_path):
    teacher = LocalTeacher(stories, device="cpu")
    replay = Replay(str(tmp_path), teacher)
    prompts = [Prompt.text("Once upon a time"), Prompt.user("Hi")]
    asked = [
        *(Request(Kind.SCORE, p, texts=(" there was", " a")) for p in prompts),
        *(Request(Kind.CHOICES, p, texts=(" there was", " a")) for p in prompts),
        *(Request(Kind.GENERATE, p, Sampling(5), logprobs=True) for p in prompts),
    ]
    said = replay.ask(asked)
    replay.close()
    assert Replay(str(tmp_path), mode="replay").ask(asked) == said == teacher.ask(asked)
