"""Over the real wire: text and log-probabilities of real servers equal the local teacher's.

What is comparable: `transformers serve` gives text alone, and drops an answer's first space;
llama.cpp's server gives text, ids and log-probabilities of what it draws and of next tokens, and
none of given texts; llama-cpp-python's server gives those too (by the environment variable
KD_LLAMA_CPP_PYTHON, since it is built from source). Greedy, since samplers' random numbers differ.
"""

from __future__ import annotations

import pytest

from kd_lightning.errors import KDError
from kd_lightning.teachers import LocalTeacher, ServerTeacher
from kd_lightning.teachers.generator import GeneratorError, Kind, Request
from kd_lightning.types import Prompt, Sampling, Signal
from tests.teachers import servers

PROMPTS = [
    Prompt.text(text)
    for text in ("Once upon a time", "Lily wanted to", "The big dog", "Tom had a", "One day, a")
]
HOW = Sampling(24)
CLOSE = 5e-5
"""float32 of two implementations, in nats."""
UNALTERED = {"top_k": 0, "min_p": 0, "repeat_penalty": 1.0}
"""llama.cpp's servers would sample otherwise."""


@pytest.fixture(scope="module")
def local(stories):
    return LocalTeacher(stories, dtype="float32", attention="sdpa")


@pytest.fixture(scope="module")
def gguf(stories, tmp_path_factory):
    file = tmp_path_factory.mktemp("gguf") / "stories.gguf"
    servers.to_gguf(stories, file)
    return file


@pytest.fixture(scope="module")
def llama_cpp(gguf, tmp_path_factory):
    with servers.llama_cpp(gguf, tmp_path_factory.mktemp("log") / "log") as url:
        teacher = ServerTeacher(url, "stories", extra=UNALTERED)
        yield teacher
        teacher.close()


@pytest.fixture(scope="module")
def echoing(gguf, tmp_path_factory):
    with servers.llama_cpp_python(gguf, tmp_path_factory.mktemp("log") / "log") as url:
        teacher = ServerTeacher(url, "stories", extra=UNALTERED)
        yield teacher
        teacher.close()


def drawn(teacher):
    asked = [Request(Kind.GENERATE, p, HOW, logprobs=True) for p in PROMPTS]
    return [reply.completions[0] for reply in teacher.ask(asked)]


def same(found, expected):
    assert found.text == expected.text and found.finished == expected.finished
    assert found.logprobs == pytest.approx(expected.logprobs, abs=CLOSE)


def test_llama_cpp_says_what_the_local_teacher_says_with_its_log_probabilities(llama_cpp, local):
    for found, expected in zip(drawn(llama_cpp), drawn(local), strict=True):
        same(found, expected)
        assert found.tokens == expected.tokens


def test_the_comparison_would_find_another_distribution(local):
    """The control: log-probabilities of one prompt's answer are not those of another's."""
    one, two = drawn(local)[:2]
    with pytest.raises(AssertionError):
        same(one, two)


def test_llama_cpp_weighs_options_as_the_local_teacher_does(llama_cpp, local):
    prompts, options = [Prompt.text("Once upon a"), Prompt.text("He saw a")], [" big", " little"]
    for found, expected in zip(
        llama_cpp.choice_logprobs(prompts, options),
        local.choice_logprobs(prompts, options),
        strict=True,
    ):
        assert found == pytest.approx(expected, abs=CLOSE)


def test_llama_cpp_does_not_score_given_texts_and_that_is_found_out(llama_cpp):
    llama_cpp.require([Kind.GENERATE, Kind.CHOICES], "a judge")
    with pytest.raises(KDError, match="given answers"):
        llama_cpp.require([Kind.SCORE], "a filter")
    with pytest.raises(GeneratorError, match="given texts"):
        llama_cpp.score(PROMPTS[:1], [" there"])


def test_ids_go_to_llama_cpp_and_come_back(llama_cpp, local):
    ids = [[local.tokenizer.bos_token_id, *local.tokenizer.encode(text, add_special_tokens=False)]
           for text in ("Once upon a time", "Tom had a")]  # fmt: skip
    local.open()
    for found, expected in zip(llama_cpp.complete(ids, HOW), local.complete(ids, HOW), strict=True):
        assert found.tokens == expected.tokens


def test_many_in_flight_are_not_mixed_up(llama_cpp, local):
    prompts = [Prompt.text(f"{name} and {other}") for name in ("Tom", "Lily", "Ben", "Anna")
               for other in ("a dog", "a cat", "his mom", "the bird", "the sun")]  # fmt: skip
    how = Sampling(8)
    found, expected = (t.generate(prompts, sampling=how) for t in (llama_cpp, local))
    assert [c.text for (c,) in found] == [c.text for (c,) in expected]


def test_given_texts_have_the_local_teachers_log_probabilities(echoing, local):
    echoing.require([Kind.SCORE], "a filter")
    prompts = [Prompt.text("Once upon a time"), Prompt.text("The big dog")]
    texts = [", there was a little girl", " was very happy."]
    for found, expected in zip(
        echoing.score(prompts, texts), local.score(prompts, texts), strict=True
    ):
        assert found.tokens == expected.tokens
        assert found.logprobs == pytest.approx(expected.logprobs, abs=CLOSE)
    for found, expected in zip(drawn(echoing), drawn(local), strict=True):
        same(found, expected)


def test_transformers_serve_says_what_the_local_teacher_says(stories, local, tmp_path):
    with servers.transformers_serve(tmp_path / "log") as url:
        teacher = ServerTeacher(url, stories, logprobs=False)
        found = teacher.generate(PROMPTS, sampling=HOW)
        expected = local.generate(PROMPTS, sampling=HOW)
        assert [c.text.lstrip() for (c,) in found] == [c.text.lstrip() for (c,) in expected]
        assert teacher.usage.completion_tokens == sum(len(c.tokens) for (c,) in expected)
        teacher.close()
        probing = ServerTeacher(url, stories)
        with pytest.raises(KDError, match="log-probabilities"):
            probing.require([Kind.SCORE], "a filter")
        assert probing.offers == {Signal.TEXT}
        probing.close()
