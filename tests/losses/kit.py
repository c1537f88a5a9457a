"""Small models, batches and plain-probability formulas for the tests of losses."""

import inspect
from functools import partial

import pytest
import torch
from torch import nn

import kd_lightning.losses
from kd_lightning.losses.advantages import GRPO
from kd_lightning.losses.answers import AnswerLoss
from kd_lightning.losses.base import Divergence, Loss, TokenLoss
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.kl import ForwardKL
from kd_lightning.losses.on_skill import OnSkill
from kd_lightning.losses.on_source import OnSource
from kd_lightning.losses.penalties import FullKL
from kd_lightning.losses.policy import PolicyGradient
from kd_lightning.losses.ranking import Ranking
from kd_lightning.losses.reward_weighted import RewardWeighted
from kd_lightning.losses.scores import LogRatio
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.surrogates import ClippedRatio
from kd_lightning.losses.weighted import Term, Weighted
from kd_lightning.types import IGNORE, Batch, Example, ModelOutput, Source

assert kd_lightning.losses.__all__, "discovery found no loss"


# ------------------------------------------------------------------ every loss that there is
def hard_and_soft() -> Weighted:
    return Weighted({"ce": Term(CrossEntropy(), 0.3), "kl": Term(ForwardKL(2.0, True), 0.7)})


def dpo_and_likelihood() -> Ranking:
    return Ranking(LogRatio(), Logistic(), beta=0.5, sft_weight=0.5)


def grpo_and_all() -> PolicyGradient:
    return PolicyGradient(
        GRPO(), ClippedRatio(), "sequence", reward_kl=0.1, kl=FullKL(), entropy_weight=0.01
    )


def own_words() -> OnSource:
    return OnSource(ForwardKL(), ["gold", "student"])


def one_skill() -> OnSkill:
    return OnSkill(ForwardKL(), "label")


ARGUMENTS = {
    Weighted: hard_and_soft,
    Ranking: dpo_and_likelihood,
    PolicyGradient: grpo_and_all,
    OnSource: own_words,
    OnSkill: one_skill,
}
"""How to build a loss that has no defaults."""


def concrete(base: type) -> list[type]:
    """Every concrete class of the library below `base`, in order of name."""
    found = {sub for child in base.__subclasses__() for sub in [child, *concrete(child)]}
    ours = [c for c in found if c.__module__.startswith("kd_lightning.")]
    return sorted((c for c in ours if not inspect.isabstract(c)), key=lambda c: c.__name__)


LOSSES, TOKEN_LOSSES, DIVERGENCES = concrete(Loss), concrete(TokenLoss), concrete(Divergence)


def build(cls: type, **arguments) -> Loss:
    try:
        return ARGUMENTS.get(cls, cls)(**arguments)
    except TypeError as error:
        pytest.fail(
            f"{cls.__name__} cannot be built from its defaults ({error}): give every argument a "
            "default, or add the class to ARGUMENTS in tests/losses/kit.py"
        )


# ------------------------------------------------------------------ models
class Linear(nn.Module):
    """A head: rows beyond `vocab` are padding."""

    def __init__(self, width, rows, vocab, dtype=torch.float64):
        super().__init__()
        self.layer = nn.Linear(width, rows, dtype=dtype)
        self.vocab = vocab
        self.projected = 0  # rows of hidden states that came by

    def forward(self, hidden):
        self.projected += len(hidden)
        return self.layer(hidden)


class Toy(nn.Module):
    """Next-token logits from the present token alone: padding cannot change them."""

    def __init__(self, seed, width=5, rows=11, vocab=11, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(vocab, width, dtype=dtype)
        self.head = Linear(width, rows, vocab, dtype)

    def forward(self, batch):
        return ModelOutput(self.embedding(batch.input_ids).tanh() * 3, self.head)


class Same:
    """A head that takes logits for hidden states."""

    def __init__(self, vocab):
        self.vocab = vocab

    def __call__(self, hidden):
        return hidden


def from_logits(logits, vocab=None):
    """`[N, V]` logits as the output of a model for one sequence."""
    return ModelOutput(logits[None], Same(vocab or logits.shape[-1]))


# ------------------------------------------------------------------ batches
def one_row(count, vocab, weights=None, seed=0):
    """One gold sequence whose every position counts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (1, count), generator=generator)
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        targets=torch.randint(0, vocab, (1, count), generator=generator),
        weights=torch.ones(1, count) if weights is None else weights[None],
        source=torch.zeros(1, dtype=torch.long),
        skill=torch.zeros(1, dtype=torch.long),
        reward=torch.tensor([0.5]),
    )


def four_rows(vocab=11, seed=0):
    """Rows of different length, weight and source; prompts and padding do not count."""
    generator = torch.Generator().manual_seed(seed)
    lengths, width = [7, 3, 6, 4], 7
    ids = torch.randint(0, vocab, (4, width), generator=generator)
    targets = torch.randint(0, vocab, (4, width), generator=generator)
    weights = torch.tensor([0.5, 1.0, 2.0])[torch.randint(0, 3, (4, width), generator=generator)]
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    ignored = (mask == 0) | (torch.arange(width)[None] < 1)
    return Batch(
        input_ids=ids * mask,
        attention_mask=mask,
        targets=targets.masked_fill(ignored, IGNORE),
        weights=weights.masked_fill(ignored, 0.0),
        source=torch.tensor([Source.GOLD, Source.STUDENT, Source.TEACHER, Source.STUDENT]),
        skill=torch.zeros(4, dtype=torch.long),
        examples=tuple(
            Example(str(i), (), skill=name) for i, name in enumerate(("label", "rationale") * 2)
        ),
    )


def four_answers(vocab=11, seed=0):
    """The same rows as answers to two prompts, with what is known of them."""
    return four_rows(vocab, seed).replace(
        group=torch.tensor([0, 0, 1, 1]), reward=torch.tensor([1.0, 0.25, -0.5, 0.5])
    )


def rows_for(cls: type):
    """A batch with what a loss asks for."""
    judged = issubclass(cls, (AnswerLoss, RewardWeighted))
    return four_answers() if judged else four_rows()


def total(loss, student, teacher, batch):
    """The sum over terms of their sums."""
    return sum(loss(student, teacher, batch).terms.values())


def value(loss, z_s, z_t, weights=None, **vocabularies):
    """Sum over the rows of two `[N, V]` logits."""
    student = from_logits(z_s, vocabularies.get("student"))
    teacher = from_logits(z_t, vocabularies.get("teacher"))
    batch = one_row(len(z_s), min(student.head.vocab, teacher.head.vocab), weights)
    return total(loss, student, teacher, batch)


def pair(rows=6, vocab=9, seed=0, scale=1.5, dtype=torch.float64):
    """Student logits with a gradient and teacher logits."""
    generator = torch.Generator().manual_seed(seed)
    z_s = scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    z_t = scale * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    return z_s.to(dtype).requires_grad_(), z_t.to(dtype)


# ------------------------------------------------------------------ formulas, in probabilities
# p teacher, q student, y label, f the student without gradient; each at the class's defaults
def kl(a, b):
    return (a * (a / b).log()).sum(-1)


def jensen_shannon(beta, p, q, y, f):
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def alpha_beta(alpha, beta, p, q, y, f):
    both = alpha + beta
    inner = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
    return -inner.sum(-1) / (alpha * beta)


def head_weight(p, f, mass=0.5):
    """AKL's weight of forward KL, token by token in a plain loop."""
    weights = []
    for teacher, student in zip(p.tolist(), f.tolist(), strict=True):
        order = sorted(range(len(teacher)), key=lambda v: -teacher[v])
        seen, head = 0.0, []
        for v in order:
            seen += teacher[v]
            if seen <= mass or not head:
                head.append(v)
            else:
                break
        gaps = [abs(a - b) for a, b in zip(teacher, student, strict=True)]
        weights.append(sum(gaps[v] for v in head) / sum(gaps))
    return torch.tensor(weights, dtype=torch.float64)


def adaptive(p, q, y, f):
    w = head_weight(p, f)
    return w * kl(p, q) + (1 - w) * kl(q, p)


def decoupled(alpha, beta, p, q, y, f):
    values = []
    for a, b, label in zip(p, q, y.tolist(), strict=True):
        others = [v for v in range(len(a)) if v != label]
        a_rest, b_rest = a[others].sum(), b[others].sum()
        binary = kl(torch.stack([a[label], a_rest]), torch.stack([b[label], b_rest]))
        values.append(alpha * binary + beta * kl(a[others] / a_rest, b[others] / b_rest))
    return torch.stack(values)


def interpolated(t, p, q, y, f):
    target = f ** (1 - t) * p**t
    return kl(target / target.sum(-1, keepdim=True), q)


GOLDEN = {
    "ForwardKL": lambda p, q, y, f: kl(p, q),
    "ReverseKL": lambda p, q, y, f: kl(q, p),
    "SymmetricKL": lambda p, q, y, f: 0.5 * kl(p, q) + 0.5 * kl(q, p),
    "JensenShannon": partial(jensen_shannon, 0.5),
    "SkewForwardKL": lambda p, q, y, f: kl(p, 0.1 * p + 0.9 * q),
    "SkewReverseKL": lambda p, q, y, f: kl(q, 0.9 * p + 0.1 * q),
    "TotalVariation": lambda p, q, y, f: 0.5 * (p - q).abs().sum(-1),
    "Hellinger": lambda p, q, y, f: 1 - (p * q).sqrt().sum(-1),
    "AlphaDivergence": lambda p, q, y, f: ((p * q).sqrt().sum(-1) - 1) / (0.5 * (0.5 - 1)),
    "AlphaBetaDivergence": partial(alpha_beta, 0.2, 0.7),
    "AdaptiveKL": adaptive,
    "DecoupledKD": partial(decoupled, 1.0, 8.0),
    "TAID": partial(interpolated, torch.tensor(0.4).item()),  # t is kept in float32
}

STOPPED = {"AdaptiveKL", "TAID"}
"""Losses with a part that carries no gradient: finite differences of the value are not theirs."""

SYMMETRIC_IN_TOKENS = [c for c in DIVERGENCES if c.__name__ != "DecoupledKD"]
"""Losses that do not ask which token is the label."""
