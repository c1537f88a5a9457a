"""A teacher behind an address is asked before the run: each planted fault is named."""

from __future__ import annotations

import pytest

from kd_lightning.doctor.findings import Level
from kd_lightning.doctor.plausible import at_odds
from kd_lightning.doctor.served import servers
from kd_lightning.losses import CrossEntropy, ForwardKL
from kd_lightning.rewards import Judge
from kd_lightning.rollouts import FromStudent
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers import Ensemble, ServerTeacher
from kd_lightning.teachers.remote.wire import Piece
from kd_lightning.types import Signal
from tests.doctor.kit import looked_at, patient, report, said
from tests.teachers import servers as real
from tests.teachers.hostile import Act, serving
from tests.teachers.spoken import speaking


class Weighs(CrossEntropy):
    """Words alone, and the teacher's log-probabilities beside them."""

    needs = frozenset({Signal.LOGPROB})


def examined(folder, url, loss=None, **settings):
    teacher = ServerTeacher(url, **{"model": "m", **settings})
    found = patient(folder, teacher=teacher, loss=loss or CrossEntropy())
    return looked_at(found, "files", "server")["server"]


def at(level, checked):
    return said(checked, level)


def test_a_sound_server_is_told_to_be_sound(tmp_path):
    for api in ("auto", "chat", "completions"):
        with serving(speaking()) as server:
            checked = examined(tmp_path, server.url, api=api)
        assert checked.level is Level.OK, checked
        assert "log-probabilities of 16 tokens can be true" in at(Level.OK, checked)
        assert ("when it is given" in at(Level.OK, checked)) == (api != "chat")


def shifted(rows):
    """Everything but the names is of the place before."""
    return [(a[0], b[1], b[2]) for a, b in zip(rows, [rows[-1], *rows[:-1]], strict=True)]


def late(rows):
    """The numbers alone are of the place before."""
    return [(a[0], b[1], a[2]) for a, b in zip(rows, [rows[-1], *rows[:-1]], strict=True)]


def flat(rows):
    """A temperature of 3 without a new sum: more than 1 in all."""
    return [(w, p and p / 3, {k: v / 3 for k, v in top.items()}) for w, p, top in rows]


def sharp(rows):
    """Twice too low: nothing of a list tells so but another telling."""
    return [(w, p and p * 2, {k: v * 2 for k, v in top.items()}) for w, p, top in rows]


def second(rows):
    """Greedy tokens that are the second of their lists."""
    return [([*top, w][1 if len(top) > 1 else -1], p, top) for w, p, top in rows]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (shifted, "shifted by one token"),
        (late, "shifted by one token"),
        (flat, "not normalised"),
        (sharp, "from what it says of the same text when it is given"),
        (second, "16 of 16 greedy tokens are not the likeliest of their own lists"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_log_probabilities_that_cannot_be_true(tmp_path, fault, words, api):
    with serving(speaking(bend=fault)) as server:
        checked = examined(tmp_path, server.url, api=api)
    if fault is sharp and api == "chat":
        assert checked.level is Level.OK, "a chat tells each number once: nothing can show it"
    else:
        assert words in at(Level.PROBLEM, checked), checked


def test_given_texts_are_shifted(tmp_path):
    with serving(speaking(bend_given=late)) as server:
        checked = examined(tmp_path, server.url)
    assert "from what it says of the same text" in at(Level.PROBLEM, checked), checked


def test_a_server_that_is_down(tmp_path):
    with serving() as server:
        url = server.url
    checked = examined(tmp_path, url)
    assert f"{url} cannot be reached" in at(Level.PROBLEM, checked)
    assert checked.seconds < 10


def test_a_wrong_name(tmp_path):
    with serving(speaking(models=("other",))) as server:
        checked = examined(tmp_path, server.url)
    assert "does not know the model 'm'" in at(Level.PROBLEM, checked)
    assert "its models: other" in at(Level.PROBLEM, checked)


def test_a_name_that_the_server_does_not_look_at(tmp_path):
    play = speaking()

    def indifferent(number, seen):
        if seen.path.endswith("/models"):
            return Act(body={"data": [{"id": "other"}]})
        return play(number, seen)

    with serving(indifferent) as server:
        checked = examined(tmp_path, server.url)
    assert "not among its models (other)" in at(Level.WARNING, checked)


def test_a_key_that_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCTOR_KEY", "sk-canary-123456")
    with serving(lambda n, seen: Act(401, {"error": "bad key sk-canary-123456"})) as server:
        checked = examined(tmp_path, server.url, key_variable="DOCTOR_KEY")
    told = at(Level.PROBLEM, checked)
    assert "refuses the key in DOCTOR_KEY" in told and "canary" not in told


def test_none_are_told_though_somebody_needs_them(tmp_path):
    with serving(speaking(tells=False)) as server:
        assert "nothing here asks for" in at(Level.OK, examined(tmp_path, server.url))
        needed = examined(tmp_path, server.url, loss=Weighs())
        stated = examined(tmp_path, server.url, logprobs=True)
    assert "no log-probabilities, and Weighs needs them" in at(Level.PROBLEM, needed)
    assert "no log-probabilities, and logprobs: true is stated" in at(Level.PROBLEM, stated)


def test_given_texts_are_not_scored_though_that_is_stated(tmp_path):
    with serving(speaking(echoes=False)) as server:
        stated = examined(tmp_path, server.url, logprobs=True)
        assert examined(tmp_path, server.url).level is Level.OK
    assert "gives no log-probabilities of given texts" in at(Level.WARNING, stated)


def test_fewer_likeliest_tokens_than_asked(tmp_path):
    with serving(speaking(most=5)) as server:
        checked = examined(tmp_path, server.url, loss=Weighs())
        assert "write top_logprobs: 5" in at(Level.WARNING, checked)
        assert examined(tmp_path, server.url).level is Level.OK


def test_servers_are_found_wherever_they_are():
    one, two = ServerTeacher("http://127.0.0.1:1/v1", "a"), ServerTeacher("http://[::1]:1/v1", "b")
    pool = Ensemble([one, two])
    assert list(servers([pool, Judge("quality", generator=two), one])) == [one, two]


def drawing(folder, url, **settings):
    rollout = FromStudent(engine=VLLMServer(url, **{"model": "m", **settings}))
    return looked_at(patient(folder, rollout=rollout), "files", "server")["server"]


def test_a_server_that_draws_the_students_answers(tmp_path):
    with serving(speaking()) as server:
        url = server.url
        assert "can be true" in at(Level.OK, drawing(tmp_path, url))
        assert "not know the model 'x'" in at(Level.PROBLEM, drawing(tmp_path, url, model="x"))
    assert "cannot be reached" in at(Level.PROBLEM, drawing(tmp_path, url))
    with serving(speaking(tells=False)) as server:
        told = at(Level.PROBLEM, drawing(tmp_path, server.url))
        assert "answers drawn there need them" in told
        assert drawing(tmp_path, server.url, logprobs="student").level is Level.OK


def test_it_is_one_of_the_checks_of_a_whole_examination(tmp_path):
    with serving(speaking()) as server:
        found, printed = report(
            patient(tmp_path, teacher=ServerTeacher(server.url, "m"), loss=CrossEntropy())
        )
        assert not found.problems, printed
        impossible, printed = report(
            patient(tmp_path, teacher=ServerTeacher(server.url, "m"), loss=ForwardKL())
        )
    assert "ForwardKL needs logits of the teacher" in printed and "loss" in str(impossible.problems)


@pytest.fixture(scope="module")
def llama_cpp(stories, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "stories.gguf"
    real.to_gguf(stories, file)
    with real.llama_cpp(file, tmp_path_factory.mktemp("log") / "log") as url:
        yield url


def test_llama_cpp_is_held_against_the_same_model_here(tmp_path, llama_cpp, stories):
    unaltered = {"top_k": 0, "min_p": 0, "repeat_penalty": 1.0}
    settings = {"model": stories, "tokenizer_path": stories, "api": "completions"}
    settings |= {"template": "plain"}
    checked = examined(tmp_path, llama_cpp, extra=unaltered, **settings)
    assert "says the same" in at(Level.OK, checked), checked
    bent = examined(tmp_path, llama_cpp, extra={**unaltered, "repeat_penalty": 1.8}, **settings)
    assert bent.level is Level.PROBLEM, bent


def test_where_tokens_share_names_their_numbers_are_compared():
    """SGLang's without their blanks: the list's `b` is another token than the drawn ` b`."""
    shared = [Piece("b", -0.5, None, {"b": -4.0, "c": -1.5})] * 2
    assert any("not the likeliest" in told for told in at_odds(shared))
    assert not [*at_odds(shared, named=False)]
    unlikely = [Piece("b", -4.0, None, {"b": -4.0, "c": -0.5})] * 2
    assert [*at_odds(unlikely, named=False)]
