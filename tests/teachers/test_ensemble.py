"""Several generators as one: who answers is known, and is a function of what is asked."""

from __future__ import annotations

import math

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers.ensemble import Ensemble
from kd_lightning.teachers.generator import Kind, Reply, Request, Usage
from kd_lightning.teachers.rules import Fixed
from kd_lightning.teachers.scripted import Scripted
from kd_lightning.types import Prompt, Sampling, Signal


class Voice(Fixed):
    """Always says one thing, and believes in it."""

    scores = True

    def logprob(self, prompt: str, text: str) -> float:
        return math.log(0.9 if text == self.answers["."] else 0.1)


def voice(name: str, scores: bool = True, knows: str = ".", **more) -> Scripted:
    rule = Voice({".": name}) if scores else Fixed({knows: name})
    return Scripted(rule, name=name, **more)


PROMPTS = [Prompt.user(f"question {i}") for i in range(600)]
REQUESTS = [Request(Kind.GENERATE, p, Sampling(seed=1)) for p in PROMPTS]


def test_a_pool_is_drawn_from_by_its_weights():
    pool = Ensemble([voice("a"), voice("b"), voice("c")], weights=[3, 1, 0])
    replies = pool.ask(REQUESTS)
    share = sum(r.by == "a" for r in replies) / len(replies)
    assert abs(share - 0.75) < 3.3 * math.sqrt(0.75 * 0.25 / len(replies))
    assert {r.by for r in replies} == {"a", "b"}
    assert all(r.completions[0].text == r.by and r.sources == (r.by,) for r in replies)


def test_who_answers_is_a_function_of_the_request():
    pool = Ensemble([voice("a"), voice("b")])
    replies = pool.ask(REQUESTS)
    assert pool.ask(REQUESTS[::-1]) == replies[::-1]
    assert [pool.ask([r])[0] for r in REQUESTS[:20]] == replies[:20]
    other = [Request(Kind.GENERATE, p, Sampling(seed=2)) for p in PROMPTS]
    same = sum(a.by == b.by for a, b in zip(pool.ask(other), replies, strict=True))
    assert abs(same / len(other) - 0.5) < 0.1


def test_all_answer_and_each_answer_has_its_source():
    every = Ensemble([voice("a"), voice("b")], how="all")
    reply = every.ask([Request(Kind.GENERATE, PROMPTS[0], n=2)])[0]
    assert [c.text for c in reply.completions] == ["a", "a", "b", "b"]
    assert reply.sources == ("a", "a", "b", "b") and reply.by == "a, b"
    assert reply.usage == Usage(4, 4)
    assert Reply.from_json(reply.as_json()) == reply
    old = {k: v for k, v in reply.as_json().items() if k != "sources"}  # of an older journal
    assert Reply.from_json(old).sources == ()


def test_where_one_of_all_fails_the_reply_fails_and_says_who():
    every = Ensemble([voice("a"), voice("b", scores=False, knows="[13579]$")], how="all")
    even, odd = every.ask(REQUESTS[:2])
    assert even.failure.startswith("b: no pattern") and not even.completions
    assert [c.text for c in odd.completions] == ["a", "b"]


def test_the_first_that_can_answers_and_the_next_where_it_fails():
    first = voice("a", scores=False, knows="[13579]$")
    able = Ensemble([first, voice("b")], how="first_able")
    assert [r.by for r in able.ask(REQUESTS[:4])] == ["b", "a", "b", "a"]
    scored = able.ask([Request(Kind.CHOICES, PROMPTS[0], texts=("b", "x"))])[0]
    assert scored.by == "b" and scored.choices[0] > scored.choices[1]
    nobody = Ensemble([first, voice("c", scores=False, knows="9$")], how="first_able")
    failed = nobody.ask(REQUESTS[:1])[0].failure
    assert "a: no pattern" in failed and "c: no pattern" in failed


def test_it_offers_what_its_way_of_asking_can_keep():
    both, text = voice("a"), voice("b", scores=False)
    assert Ensemble([both, text]).offers == {Signal.TEXT}
    assert Ensemble([both, voice("c")]).offers == {Signal.TEXT, Signal.LOGPROB}
    assert Ensemble([both, voice("c")], how="all").offers == {Signal.TEXT}
    assert Ensemble([both, text], how="first_able").offers == {Signal.TEXT, Signal.LOGPROB}
    with pytest.raises(KDError, match=r"judge \(through ensemble\).*Scripted b"):
        Ensemble([both, text]).require([Kind.CHOICES], "judge")
    with pytest.raises(KDError, match="Ensemble ensemble does not give"):
        Ensemble([both, voice("c")], how="all").require([Kind.SCORE], "judge")


def test_its_licence_is_the_strictest():
    pool = Ensemble([voice("a", licence="mit"), voice("b", licence="x-no-train")])
    assert pool.licence == "x-no-train AND mit"


def test_identities_tell_pools_apart():
    a, b = voice("a"), voice("b")
    pools = [Ensemble([a, b]), Ensemble([b, a]), Ensemble([a, b], how="all"),
             Ensemble([a, b], weights=[1, 2]), Ensemble([a, voice("b", seed=1)])]  # fmt: skip
    assert len({p.identity for p in pools}) == len(pools)


def test_a_pool_within_a_pool_says_who_spoke():
    inner = Ensemble([voice("a"), voice("b")], name="inner")
    replies = Ensemble([inner, voice("c")], name="outer").ask(REQUESTS[:60])
    assert {r.by for r in replies} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"members": []}, "without members"),
        ({"members": [voice("a")], "weights": [1, 2]}, "`weights`"),
        ({"members": [voice("a")], "weights": [0.0]}, "`weights`"),
        ({"members": [voice("a")], "weights": [1.0], "how": "all"}, "`weights`"),
        ({"members": [voice("a"), voice("a")]}, "told apart by name"),
    ],
)
def test_what_makes_no_pool_is_refused(how, told):
    with pytest.raises(KDError, match=told):
        Ensemble(**how).open()
