"""Rules that need no model."""

import pytest

from kd_lightning.curate.form import (
    Alternates,
    Finished,
    HasFields,
    Parses,
    Rules,
    SameNumbers,
)
from kd_lightning.curate.language import Language, language_of
from kd_lightning.curate.rules import Keywords, Length, LengthRatio, Matches, NoRefusal
from kd_lightning.errors import KDError
from tests.curate.kit import ran, records, texts


def test_length_in_words_and_characters():
    rows = records({"answer": "one two three"}, {"answer": "one"}, {}, {"answer": "a " * 9})
    kept, fallen = ran(Length(min_words=2, max_words=8), rows)
    assert kept == ["r0"]
    assert fallen == {"answer too short": ["r1"], "no answer": ["r2"], "answer too long": ["r3"]}
    assert ran(Length(min_chars=4, max_chars=13), rows)[0] == ["r0"]


def test_bounds_are_inclusive():
    assert ran(Length(min_words=3, max_words=3), texts("a b c", field="answer"))[0] == ["r0"]
    step = LengthRatio(least=0.5, most=2)
    rows = records(
        {"prompt": "a b", "answer": "a"},
        {"prompt": "a b", "answer": "a b c d"},
        {"prompt": "a b c", "answer": "a"},
        {"prompt": "a b", "answer": "a b c d e"},
    )
    assert ran(step, rows)[0] == ["r0", "r1"]


def test_several_fields_count_together():
    rows = records({"prompt": "a b", "answer": "c"}, {"prompt": "a b"})
    assert ran(Length(["prompt", "answer"], min_words=3), rows)[0] == ["r0"]


def test_matches_keeps_or_drops():
    rows = texts("see http://x.org", "see nothing")
    step = Matches(r"https?://", "prompt", keep=False, reason="holds an address")
    assert ran(step, rows) == (["r1"], {"holds an address": ["r0"]})
    assert ran(Matches("see nothing", "prompt", whole=True), rows)[0] == ["r1"]
    with pytest.raises(KDError, match="no regular expression"):
        Matches("(")


def test_keywords_are_whole_words():
    rows = texts("Draw an IMAGE, please", "imagery is fine", "make a graph of it", "a bar graph")
    step = Keywords(["image", "graph of"])
    kept, fallen = ran(step, rows)
    assert kept == ["r1", "r3"]
    assert fallen == {"prompt holds 'image'": ["r0"], "prompt holds 'graph of'": ["r2"]}


def test_refusals_at_the_beginning_only():
    late = "x" * 200 + " as an AI"
    rows = texts("As an AI, I have no taste.", "I\u2019m sorry, but no", late, field="answer")
    assert ran(NoRefusal(), rows) == (["r2"], {"refusal": ["r0", "r1"]})
    assert ran(NoRefusal(within=None), rows)[0] == []
    assert ran(NoRefusal(markers=["taste"]), rows)[0] == ["r1", "r2"]


def test_finished_by_word_or_by_looks():
    rows = records(
        {"answer": "It is"},
        {"answer": "It is 5"},
        {"answer": "It is.", "finished": False},
        {"answer": "It is", "finished": True},
        {},
    )
    kept, fallen = ran(Finished(), rows)
    assert kept == ["r1", "r3"]
    assert fallen == {
        "answer ends amid a sentence": ["r0"],
        "answer was cut": ["r2"],
        "no answer": ["r4"],
    }


def test_fields_that_must_be_there():
    rows = records({"a": 0}, {"a": ""}, {"b": 1}, {"a": []}, {"a": False})
    assert ran(HasFields(["a"]), rows) == (["r0", "r4"], {"no a": ["r1", "r2", "r3"]})


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [("json", '{"a": [1]}', "{'a': 1}"), ("python", "def f(): return 1", "def f( return 1")],
)
def test_parses(kind, good, bad):
    rows = texts(good, bad, "(" * 100_000, field="answer")
    assert ran(Parses(kind=kind), rows) == (["r0"], {f"answer is no {kind}": ["r1", "r2"]})


def turns(*told):
    return {"messages": [{"role": r, "content": c} for r, c in told]}


ASKED, SAID = ("user", "q"), ("assistant", "a")


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([ASKED, SAID], ""),
        ([("system", "s"), ASKED, SAID, ASKED, SAID], ""),
        ([ASKED, SAID, ("tool", "4"), SAID], ""),
        ([SAID, ASKED, SAID], "roles do not take turns"),
        ([ASKED, ASKED, SAID], "roles do not take turns"),
        ([ASKED, SAID, ASKED], "last turn is no answer"),
        ([ASKED, ("assistant", " ")], "empty turn"),
        ([ASKED, ("system", "s"), SAID], "system turn amid the conversation"),
        ([("human", "q"), SAID], "unknown role human"),
        ([ASKED, SAID] * 3, "too many turns"),
        ([], "no messages"),
    ],
)
def test_roles_take_turns(told, reason):
    kept, fallen = ran(Alternates(max_turns=4), records(turns(*told)))
    assert list(fallen) == ([reason] if reason else [])
    assert kept == ([] if reason else ["r0"])


def test_all_rules_together_are_an_and():
    apology, short = Matches("sorry", keep=False), Length(min_words=4)
    rows = texts("sorry", "sorry but here is all of it", "yes", field="answer")
    assert ran(Rules([apology, short], "all"), rows)[0] == ["r1", "r2"]
    kept, fallen = ran(Rules([apology, short]), rows)
    assert kept == []
    assert fallen == {"answer holds sorry": ["r0", "r1"], "answer too short": ["r2"]}


def test_numbers_must_come_from_the_text():
    rows = records(
        {"prompt": "1,200 men in 1990", "answer": "1200 men"},
        {"prompt": "1,200 men in 1990", "answer": "1300 men"},
    )
    assert ran(SameNumbers(), rows)[0] == ["r0"]
    assert ran(SameNumbers(both=True), rows)[1]["a number of prompt is lost"] == ["r0"]


SENTENCES = {
    "en": "The cat sat on the mat and it was not pleased with the weather of that day.",
    "de": "Die Katze saß auf der Matte und war mit dem Wetter nicht sehr zufrieden.",
    "fr": "Le chat est assis sur le tapis et il ne veut pas sortir dans la rue avec les autres.",
    "es": "El gato está en la alfombra y no quiere salir a la calle con los otros por el frío.",
    "it": "Il gatto è sul tappeto e non vuole uscire per la strada con gli altri del quartiere.",
    "pt": "O gato está no tapete e não quer sair para a rua com os outros por causa do frio.",
    "nl": "De kat zit op de mat en het is niet te geloven dat hij met zijn vrienden van huis gaat.",
    "zh": "猫坐在垫子上，今天的天气不好。",
    "ja": "猫はマットの上に座っています。",
    "ru": "Кошка сидит на коврике и смотрит в окно.",
    "ar": "القطة تجلس على السجادة",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_languages_are_told(code):
    assert language_of(SENTENCES[code]) == code


def test_language_keeps_the_wanted_ones():
    rows = texts(*SENTENCES.values(), "x = 1; y = 2", "")
    kept, fallen = ran(Language(["en", "zh"]), rows)
    wanted = [f"r{i}" for i, code in enumerate(SENTENCES) if code in ("en", "zh")]
    assert kept == [*wanted, f"r{len(SENTENCES)}"]
    assert fallen["language de"] == ["r1"] and fallen["no prompt"]
    assert ran(Language(unsure=False), rows)[0] == ["r0"]
    with pytest.raises(KDError, match="not known"):
        Language(["xx"])
