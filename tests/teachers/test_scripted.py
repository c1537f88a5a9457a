"""Rules answer rightly; their errors are as frequent and as systematic as they are told to be."""

from __future__ import annotations

import math
import random

import pytest
from jsonargparse import ArgumentParser

from kd_lightning.data.skills.demo_rows import FAMILIES, draw
from kd_lightning.errors import KDError
from kd_lightning.teachers import rules
from kd_lightning.teachers.generator import Generator, Kind, Request
from kd_lightning.teachers.scripted import Scripted
from kd_lightning.types import Prompt, Sampling

RNG = random.Random(0)


def said(generator: Generator, text: str, n: int = 1, **how) -> list[str]:
    made = generator.generate([Prompt.user(text)], n, Sampling(**how))[0]
    return [completion.text for completion in made]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_demo_rule_is_the_demos_labellers(family):
    rule = rules.DemoRule()
    for item in draw(family, "train", 40, seed=1):
        asked = f"Think first.\n\n{item.prompt}\nWrite the answer only."
        assert rule.answer(asked, RNG) == item.answer
        assert rule.slip(asked, RNG) == item.slip
        assert rule.stray(asked, RNG) != item.answer


def test_the_last_instruction_is_answered():
    assert rules.DemoRule().answer("Reverse abc. It is cba. Reverse xyz.", RNG) == "zyx"


def test_calculations_take_products_first_and_slip_from_left_to_right():
    assert rules.Arithmetic().answer("What is 2+3*4?", RNG) == "14"
    assert rules.Arithmetic().slip("What is 2+3*4?", RNG) == "20"
    assert rules.Arithmetic().answer("7 - 2 - 10", RNG) == "-5"
    assert rules.Arithmetic().slip("7 - 2 - 10", RNG) == "-4"  # the order changes nothing
    steps = rules.Arithmetic(steps=True)
    assert steps.answer("2+3*4 =", RNG) == "3*4=12, 2+12=14. The answer is 14"
    assert steps.slip("2+3*4 =", RNG) == "2+3=5, 5*4=20. The answer is 20"
    assert steps.slip("2+3", RNG) == "2+3=6. The answer is 6"


def test_patterns_answer_in_order_with_what_they_found():
    rule = rules.Fixed({r"capital of (\w+)": r"The capital of \1.", ".": "I do not know."})
    scripted = Scripted(rule)
    assert said(scripted, "the capital of Peru?") == ["The capital of Peru."]
    assert said(scripted, "hm") == ["I do not know."]
    told = rules.Fixed({"a": "yes"}, slips={"a": "no"})
    assert said(Scripted(told, error_rate=1), "a") == ["no"]


def test_a_prompt_that_no_rule_knows_fails_alone():
    scripted = Scripted(rules.DemoRule())
    requests = [Request(Kind.GENERATE, Prompt.user(t)) for t in ("Reverse abc.", "Sing!")]
    good, bad = scripted.ask(requests)
    assert good.completions[0].text == "cba" and "Sing!" in bad.failure


def test_a_function_is_a_rule():
    scripted = Scripted(lambda text, rng: text.upper(), error_rate=0)
    assert said(scripted, "abc") == ["ABC"]
    assert said(Scripted(lambda text, rng: text.upper(), error_rate=1), "abc") != ["ABC"]


ITEMS = draw("reversal", "train", 400, seed=0)


def wrong(scripted: Scripted, **how) -> list[bool]:
    return [said(scripted, item.prompt, **how)[0] != item.answer for item in ITEMS]


@pytest.mark.parametrize("errors", ["systematic", "random"])
def test_errors_are_as_frequent_as_told(errors):
    for rate in (0.0, 0.3, 1.0):
        share = sum(wrong(Scripted(rules.DemoRule(), rate, errors))) / len(ITEMS)
        assert abs(share - rate) <= 3.3 * math.sqrt(rate * (1 - rate) / len(ITEMS))


def test_systematic_errors_are_the_slip_on_the_same_prompts_however_they_are_asked():
    scripted = Scripted(rules.DemoRule(), 0.3)
    errs = wrong(scripted)
    assert errs == wrong(scripted, temperature=1.0, seed=5)
    assert errs == wrong(Scripted(rules.DemoRule(), 0.3, seed=0))
    assert errs != wrong(Scripted(rules.DemoRule(), 0.3, seed=1))
    for item, err in zip(ITEMS, errs, strict=True):
        assert set(said(scripted, item.prompt, 5, temperature=1.0)) == {
            item.slip if err else item.answer
        }


def test_a_vote_finds_random_errors_and_not_systematic_ones():
    def voted(errors) -> float:
        scripted = Scripted(rules.DemoRule(), 0.4, errors)
        right = 0
        for item in ITEMS[:100]:
            answers = said(scripted, item.prompt, 9, temperature=1.0)
            right += max(set(answers), key=answers.count) == item.answer
        return right / 100

    assert voted("random") > 0.95 and voted("systematic") < 0.75


def test_answers_end_at_their_limit_and_at_stop_texts():
    scripted = Scripted(lambda text, rng: "one two three. four")
    assert said(scripted, "x", max_new_tokens=2) == ["one two"]
    assert said(scripted, "x", stop=(".",)) == ["one two three"]
    cut = scripted.generate([Prompt.user("x")], 1, Sampling(2))[0][0]
    whole = scripted.generate([Prompt.user("x")], 1, Sampling(9))[0][0]
    assert whole.finished and not cut.finished


class Yes(rules.Fixed):
    """Believes in yes."""

    scores = True

    def logprob(self, prompt: str, text: str) -> float:
        return math.log(0.9 if text == "yes" else 0.1)


def test_log_probabilities_come_from_the_rule_or_are_refused():
    scripted = Scripted(Yes({".": "yes"}))
    scripted.require([Kind.CHOICES], "the test")
    assert scripted.choice_logprobs([Prompt.user("?")], ["yes", "no"])[0] == pytest.approx(
        (math.log(0.9), math.log(0.1))
    )
    assert scripted.score([Prompt.user("?")], ["no"])[0].total == pytest.approx(math.log(0.1))
    with pytest.raises(KDError, match="log-probabilities of options"):
        Scripted(rules.DemoRule()).require([Kind.CHOICES], "the test")


def test_identities_tell_settings_apart():
    made = [
        Scripted(rules.DemoRule()),
        Scripted(rules.DemoRule(), 0.1),
        Scripted(rules.DemoRule(), seed=1),
        Scripted(rules.Arithmetic()),
        Scripted(rules.Arithmetic(steps=True)),
    ]
    assert len({s.identity for s in made}) == len(made)
    assert Scripted(rules.DemoRule()).identity == made[0].identity


def test_a_configuration_names_it_by_its_class():
    parser = ArgumentParser()
    parser.add_argument("--speaker", type=Generator)
    told = {
        "class_path": "Scripted",
        "init_args": {
            "rule": {"class_path": "Arithmetic", "init_args": {"steps": True}},
            "error_rate": 0.5,
        },
    }
    found = parser.instantiate_classes(parser.parse_object({"speaker": told})).speaker
    assert isinstance(found, Scripted) and isinstance(found.rule, rules.Arithmetic)
    assert found.rule.steps and found.error_rate == 0.5


def test_a_rate_is_a_share():
    with pytest.raises(KDError, match="share"):
        Scripted(rules.DemoRule(), error_rate=1.5)
