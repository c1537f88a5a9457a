"""A local model answers requests: each for itself, by its own seed, as evaluation would ask it."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kd_lightning.data.skills.demo import Demo
from kd_lightning.errors import KDError
from kd_lightning.models.drawing import Draw
from kd_lightning.models.picking import pick
from kd_lightning.models.placement import Placement
from kd_lightning.models.scoring import Row, logprobs
from kd_lightning.teachers.generator import Kind, Request
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.speaking import Speaker
from kd_lightning.types import Example, Message, Prompt, Sampling
from tests import tiny
from tests.tiny import save_model

LETTERS = len(tiny.tokenizer())

PROMPTS = [
    Prompt.text("Once upon a time"),
    Prompt.user("Tell me of a cat.", system="You are brief."),
    Prompt.text("Lily"),
    Prompt.text("The dog ran to the big tree and then it"),
    Prompt((Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Who?"))),
]
HOT = Sampling(16, temperature=1.0, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def teacher(stories):
    made = LocalTeacher(stories, device="cpu", dtype="float32")
    made.open()
    return made


def speaker(teacher: LocalTeacher, **how) -> Speaker:
    return Speaker(teacher.model, **how)


def asked(speaker: Speaker, requests: list[Request]) -> list:
    found: dict = {}
    for done in speaker.replies(iter(requests)):
        assert not found.keys() & {i for i, _ in done}
        found.update(done)
    return [found[i] for i in range(len(requests))]


def mixed() -> list[Request]:
    """Greedy and drawn, short and long, one and several, scores and options."""
    cold = Sampling(9, seed=1, stop=("she", "the"))
    return [
        *(Request(Kind.GENERATE, p, HOT, n=2, logprobs=True) for p in PROMPTS),
        *(Request(Kind.GENERATE, p, cold) for p in PROMPTS),
        *(Request(Kind.SCORE, p, texts=(" a cat.", "No")) for p in PROMPTS),
        *(Request(Kind.CHOICES, p, texts=(" a", " b", " the cat")) for p in PROMPTS),
    ]


def words(reply) -> tuple:
    return tuple(
        (c.text, c.tokens, c.finished, len(c.logprobs)) for c in reply.completions
    ) + tuple(s.tokens for s in reply.scores)


def test_an_answer_depends_on_its_request_alone(teacher):
    requests = mixed()
    together = asked(speaker(teacher), requests)
    assert together == asked(speaker(teacher), requests)  # to the last bit
    back = asked(speaker(teacher), requests[::-1])[::-1]
    alone = [asked(speaker(teacher, rows=1), [request])[0] for request in requests]
    narrow = asked(speaker(teacher, rows=3, batch_tokens=64), requests)
    for one, *others in zip(together, back, alone, narrow, strict=True):
        for other in others:
            assert words(one) == words(other)
            assert one.choices == pytest.approx(other.choices, abs=1e-4)


def test_seeds_numbers_and_prompts_each_change_what_is_drawn(teacher):
    prompt = PROMPTS[0]
    (a, b), (c, _) = (
        teacher.generate([prompt], 2, Sampling(16, temperature=1.0, seed=s))[0] for s in (0, 1)
    )
    assert len({a.text, b.text, c.text}) == 3
    assert teacher.generate([prompt], 1, Sampling(16, temperature=1.0))[0][0] == a
    sampling = Sampling(8, temperature=1.0)
    shares = [Draw(p, sampling, 8).shares() for p in ((1, 2), (1, 3))]
    assert not torch.equal(*shares)


def test_greedy_answers_are_those_of_evaluation(teacher):
    prompts = [teacher.tokenizer(t)["input_ids"] for t in ("Once upon a time", "Lily")]
    expected = teacher.complete(prompts, Sampling(12))
    said = teacher.generate([PROMPTS[0], PROMPTS[2]], 2, Sampling(12))
    assert [(a.tokens, a.finished) for a, _ in said] == [(e.tokens, e.finished) for e in expected]
    assert [a.text.strip() for a, _ in said] == [e.text for e in expected]
    assert all(a == b for a, b in said)


def test_a_plain_text_and_its_continuation_join(teacher):
    said = teacher.generate([PROMPTS[2]], 1, Sampling(6))[0][0]
    whole = teacher.tokenizer("Lily")["input_ids"] + list(said.tokens)
    assert "Lily" + said.text == teacher.tokenizer.decode(whole, skip_special_tokens=True)
    assert said.text.startswith(" ")


def test_chat_prompts_have_the_ids_of_evaluation(teacher):
    data = Demo(train_rows=5, validation_rows=5, test_rows=5)
    data.tokenizer = teacher.tokenizer
    wording = speaker(teacher).wording
    turns = (Message("system", "Be brief."), Message("user", "Who <s> is it?"))
    for history in (turns, (*turns, Message("assistant", "Me."), Message("user", "And you?"))):
        example = Example(
            "x",
            (
                *history,
                Message("assistant", "I am."),
            ),
        )
        expected = data.prompt_ids(example)
        assert list(wording.prompt(Prompt(history))) == expected
        encoded = data.encode(example).ids.tolist()
        answer = list(wording.answer(Prompt(history), "I am."))
        assert encoded[len(expected) :] == [*answer, teacher.tokenizer.eos_token_id]


def by_hand(teacher: LocalTeacher, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log p of each token in float64, from the model's logits."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = teacher.model.transformer(input_ids=ids).logits[0].double()
    log_p = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return log_p.gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_scores_are_log_probabilities_of_the_text_alone(teacher):
    texts = [", there was a little cat.", "I do not know.", "", " saw", "No."]
    wording = speaker(teacher).wording
    for prompt, text, score in zip(PROMPTS, texts, teacher.score(PROMPTS, texts), strict=True):
        answer = list(wording.answer(prompt, text))
        expected = by_hand(teacher, list(wording.prompt(prompt)), answer)
        torch.testing.assert_close(
            torch.tensor(score.logprobs, dtype=torch.float64), expected, atol=1e-4, rtol=0
        )
        assert "".join(score.tokens) == text and len(score.tokens) == len(answer)


def test_options_are_scored_like_answers(teacher):
    options = [" a", " b", " the cat", " the car", "a"]
    found = teacher.choice_logprobs(PROMPTS, options)
    for i, option in enumerate(options):
        scores = teacher.score(PROMPTS, [option] * len(PROMPTS))
        assert [row[i] for row in found] == pytest.approx([s.total for s in scores], abs=1e-4)
    assert len({round(x, 3) for x in found[0]}) == len(options)


def test_log_probabilities_of_what_is_drawn_are_at_temperature_one(teacher):
    how = Sampling(8, temperature=0.5, top_k=5, seed=2)
    request = Request(Kind.GENERATE, PROMPTS[0], how, n=2, logprobs=True)
    prompt = list(speaker(teacher).wording.prompt(PROMPTS[0]))
    for made in teacher.ask([request])[0].completions:
        expected = by_hand(teacher, prompt, list(made.tokens))
        assert made.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_stop_texts_end_an_answer_and_are_no_part_of_it(teacher):
    free = teacher.generate([PROMPTS[0]], 1, Sampling(30))[0][0]
    stop = free.text[12:17]
    cut = teacher.generate([PROMPTS[0]], 1, Sampling(30, stop=("never", stop)))[0][0]
    assert cut.text == free.text[: free.text.index(stop)] and cut.finished
    assert len(cut.tokens) < len(free.tokens)
    assert cut.tokens == free.tokens[: len(cut.tokens)]
    short = teacher.generate([PROMPTS[0]], 1, Sampling(3))[0][0]
    assert not short.finished and len(short.tokens) == 3


def test_usage_counts_a_prompt_once_and_every_answer(teacher):
    request = Request(Kind.GENERATE, PROMPTS[2], HOT, n=3)
    reply = teacher.ask([request])[0]
    prompt = speaker(teacher).wording.prompt(PROMPTS[2])
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == sum(len(c.tokens) for c in reply.completions)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (Prompt.text("word " * 600), "does not fit"),
        (Prompt((Message("user", "a"), Message("assistant", "b"))), "ends with a turn of the ass"),
    ],
)
def test_what_cannot_be_answered_fails_alone(teacher, prompt, told):
    good, bad, last = (Request(Kind.GENERATE, p, HOT) for p in (PROMPTS[0], prompt, PROMPTS[2]))
    first, failed, third = asked(speaker(teacher), [good, bad, last])
    assert told in failed.failure and not failed.completions
    assert [first, third] == asked(speaker(teacher), [good, last])


def test_an_answer_ends_where_the_models_positions_do(teacher):
    long = Prompt.text("a b " * 248)
    room = 512 - len(speaker(teacher).wording.prompt(long))
    assert 0 < room < 20
    long_one, short = teacher.generate([long, PROMPTS[0]], 1, Sampling(40))
    assert len(long_one[0].tokens) <= room and len(short[0].tokens) == 40


def test_requests_are_taken_as_there_is_room(teacher):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield Request(Kind.GENERATE, PROMPTS[i % 2], Sampling(1))

    replies = speaker(teacher, rows=2).replies(endless())
    seen = [i for done in itertools.islice(replies, 3) for i, _ in done]
    assert len(seen) == 6 and len(taken) < 40


def test_a_sharded_model_is_refused(teacher, monkeypatch):
    monkeypatch.setattr(teacher.model, "placement", Placement(torch.device("cpu")))
    with pytest.raises(KDError, match="sharded"):
        speaker(teacher)


def test_rows_of_the_head_that_are_no_tokens_are_never_drawn_nor_counted(tmp_path):
    save_model(tmp_path, width=16, vocab_size=2 * LETTERS)
    teacher = LocalTeacher(str(tmp_path), device="cpu")
    drawn = teacher.generate([PROMPTS[0]], 20, Sampling(10, temperature=50.0))[0]
    known = len(teacher.tokenizer)
    assert known <= LETTERS and all(max(c.tokens) < known for c in drawn)
    prompt, answer = (list(ids) for ids in ((5, 6, 7), (8, 9)))
    with torch.no_grad():
        every = teacher.model.transformer(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
    expected = every[2:4, :known].double().log_softmax(-1)[[0, 1], answer]
    found = logprobs(teacher.model, [Row((*prompt, *answer), ((2, 8), (3, 9)))])[0]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert found != pytest.approx(every[2:4].log_softmax(-1)[[0, 1], answer].tolist(), abs=1e-2)


def test_learned_positions_never_run_out_beside_a_longer_prompt(tmp_path):
    tok = tiny.tokenizer()
    fields = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 40}
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), eos_token_id=2, **fields)).save_pretrained(
        tmp_path
    )
    tok.save_pretrained(tmp_path)
    teacher = LocalTeacher(str(tmp_path), device="cpu")
    prompts = [Prompt.text("a" * n) for n in (36, 20, 3)]
    together = [a[0] for a in teacher.generate(prompts, 1, Sampling(30))]
    assert len(together[0].tokens) <= 3 and len(together[1].tokens) <= 19
    assert together == [teacher.generate([p], 1, Sampling(30))[0][0] for p in prompts]


# ---- the law of what is drawn --------------------------------------------------------------------


LOGITS = torch.tensor([1.0, 3.0, -1.0, 2.5, 0.0, 2.0])


def frequencies(sampling: Sampling, draws: int = 20000) -> torch.Tensor:
    shares = torch.rand(draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = pick(LOGITS.expand(draws, -1), shares, sampling)
    return torch.bincount(drawn, minlength=len(LOGITS)) / draws


def chi_square(found: torch.Tensor, p: torch.Tensor, draws: int = 20000) -> float:
    kept = p > 0
    assert not found[~kept].any()
    return float((draws * (found[kept] - p[kept]) ** 2 / p[kept]).sum())


LAW = {
    "all": (Sampling(1, 1.0), [0, 1, 2, 3, 4, 5]),
    "cold": (Sampling(1, 0.5), [0, 1, 2, 3, 4, 5]),
    "top-k": (Sampling(1, 1.0, top_k=3), [1, 3, 5]),
    "nucleus": (Sampling(1, 1.0, top_p=0.7), [1, 3]),  # 0.455 and 0.276: the first two reach 0.7
    "both": (Sampling(1, 1.0, top_p=0.9, top_k=4), [1, 3, 5]),
    "tiny nucleus": (Sampling(1, 1.0, top_p=1e-6), [1]),
}


@pytest.mark.parametrize("name", LAW)
def test_tokens_are_drawn_by_their_probabilities(name):
    sampling, kept = LAW[name]
    p = torch.zeros(len(LOGITS)).double()
    p[kept] = (LOGITS[kept].double() / sampling.temperature).softmax(-1)
    assert chi_square(frequencies(sampling), p) < 20.5  # 5 degrees of freedom: 0.1% lie above
    if name == "all":
        other = (LOGITS.double() / 1.1).softmax(-1)
        assert chi_square(frequencies(sampling), other) > 20.5  # the control


def test_answers_are_drawn_by_the_models_probabilities(teacher):
    prompt = PROMPTS[2]
    n = 600
    made = teacher.generate([prompt], n, Sampling(1, temperature=1.0, top_k=4))[0]
    found = Counter(c.tokens[0] for c in made)
    ids = list(speaker(teacher).wording.prompt(prompt))
    with torch.no_grad():
        logits = teacher.model.transformer(input_ids=torch.tensor([ids])).logits[0, -1].double()
    top = logits.topk(4)
    assert set(found) <= set(top.indices.tolist())
    expected = n * top.values.softmax(-1)
    counts = torch.tensor([found[int(i)] for i in top.indices], dtype=torch.float64)
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # 3 degrees: 0.1%
