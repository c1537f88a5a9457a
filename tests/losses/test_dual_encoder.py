"""Texts beside their question: the score against its formula, and against what is used later."""

import pytest
import torch

from kd_lightning.curate.relevance import Cosine
from kd_lightning.curate.vectors import HiddenStates
from kd_lightning.data.skills.preference import Preference
from kd_lightning.errors import KDError
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.dual_encoder import DualEncoder
from kd_lightning.losses.listwise import ListwiseSoftmax
from kd_lightning.losses.ranking import Ranking
from kd_lightning.teachers.local import LocalTeacher
from tests.curate.kit import work
from tests.data.kit import write
from tests.losses.judged import NAN, answers
from tests.losses.kit import Toy


def asked():
    """Two questions, with three texts and with two; the question is not always the first row."""
    return answers(
        lengths=[5, 3, 7, 2, 4, 6, 3],
        prompts=[0] * 7,
        group=[4, 4, 4, 4, 2, 2, 2],
        reward=[NAN, 0.5, 2.0, -1.0, 1.0, NAN, 0.0],
    )


def info_nce(student, batch, beta=20.0):
    """Mean over questions of -log softmax of the best text's cosine, in plain loops."""
    means = []
    for states, length in zip(student(batch).hidden, batch.lengths, strict=True):
        means.append(states[:length].mean(0))
    total = 0.0
    for question, best, texts in ((0, 2, (1, 2, 3)), (5, 4, (4, 6))):
        near = {i: torch.cosine_similarity(means[question], means[i], dim=0) for i in texts}
        total = total - (beta * near[best]) + sum((beta * n).exp() for n in near.values()).log()
    return total / 2


def test_the_formula():
    batch = asked()
    loss = Ranking(DualEncoder(), ListwiseSoftmax(against="best"), beta=20.0)
    got, want = (Toy(0, width=6) for _ in range(2))
    counts = loss.count(batch)
    objective, _ = loss.objective(got(batch), None, batch, counts)
    expected = info_nce(want, batch)
    torch.testing.assert_close(objective, expected)
    objective.backward()
    expected.backward()
    torch.testing.assert_close(got.embedding.weight.grad, want.embedding.weight.grad)
    parts = [loss.objective(want(p), None, p, counts)[0] for p in batch.split(rows=4)]
    assert len(parts) == 2
    torch.testing.assert_close(sum(parts), expected)
    assert got.head.projected == 0


def test_a_group_without_one_question_is_refused():
    loss = Ranking(DualEncoder(), Logistic())
    for first in (0.25, NAN):  # none in the second group, or two
        batch = asked()
        batch.reward[5], batch.reward[6] = first, first
        with pytest.raises(KDError, match=r"--data\.apart=true"):
            loss(Toy(0)(batch), None, batch)


def test_what_is_learned_is_what_finds(tmp_path, tiny_teacher):
    """Rows of the data and the score, and the curator's texts and cosines: the same numbers."""
    texts = ["a fox", "two red hens", "a"]
    row = {"prompt": "which fox?", "candidates": texts, "scores": [1, 0, 0]}
    model = LocalTeacher(tiny_teacher, dtype="float32", attention="sdpa")
    path = write(tmp_path / "rows.jsonl", [row])
    data = Preference(path, validation=path, apart=True)
    data.tokenizer = model.tokenizer
    [batch] = data.train_dataloader()
    assert [reward == reward for reward in batch.reward.tolist()] == [False, True, True, True]
    model.materialize(torch.device("cpu"))
    loss = Ranking(DualEncoder(), ListwiseSoftmax())
    output = model.model(batch)
    said = loss._said(output, None, batch, output.hidden.new_zeros(4, 1))
    got = loss.score(said)
    assert got[0] == pytest.approx(1)
    by = Cosine(HiddenStates("teacher"))
    [want] = by.of([("which fox?", texts)], work(teacher=model))
    assert got[1:].tolist() == pytest.approx(want, abs=1e-5)
    assert len({round(number, 3) for number in want}) == 3
