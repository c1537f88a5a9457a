"""Sparse targets made from logits, and what a divergence on them is, in plain probabilities."""

import torch

from kd_lightning.types import IGNORE, ModelOutput, SparseTargets
from tests.kernels.kit import batch
from tests.losses.kit import GOLDEN

SUPPORTS = ["tail", "both_renormalised", "teacher_renormalised", "unnormalised"]
"""Comparisons that serve every divergence."""


class NoHead:
    """A head that must not be called."""

    vocab = 10**9

    def __call__(self, hidden):
        raise AssertionError("the teacher has no head")


def only(sparse):
    """The output of a teacher of which a few ids are known."""
    return ModelOutput(torch.full((1, 1, 0), float("nan")), NoHead(), sparse=sparse)


def store(z, targets, k, support="tail", temperatures=(1.0, 2.5), vocab=None):
    """The k largest logits of `[M, V]` with what else a cache holds."""
    vocab = vocab or z.shape[-1]
    z = z[:, :vocab].detach() - z[:, :vocab].detach().amax(-1, keepdim=True)
    logits, ids = z.topk(min(k, vocab))
    log_p = z.log_softmax(-1)
    return SparseTargets(
        ids=ids,
        logits=logits,
        lse={t: (z / t).logsumexp(-1) for t in temperatures},
        label=log_p.gather(-1, targets[:, None]).squeeze(-1),
        entropy=-(log_p.exp() * log_p).sum(-1),
        vocab=vocab,
        support=support,
    )


def stored(teacher, batch, k, support="tail", **more):
    """A live teacher's output as a cache would hold it."""
    counted = batch.targets != IGNORE
    z = teacher.head(teacher.hidden.clone())[counted].detach()
    return store(z, batch.targets[counted], k, support, vocab=teacher.head.vocab, **more)


def drawn(z, seed, proposal=1.0, temperature=1.0, biased=False, draws=4):
    """A few ids of each row `[M, V]` with what each is worth: p/q times how often it came."""
    generator = torch.Generator().manual_seed(seed)
    p = (z / temperature).softmax(-1)
    q = (proposal * z / temperature).softmax(-1)
    times = torch.zeros_like(p)
    hits = torch.multinomial(q, draws, replacement=True, generator=generator)
    times.scatter_add_(-1, hits, torch.ones(hits.shape, dtype=z.dtype))
    share = times / draws * p / q
    if biased:
        share = share / share.sum(-1, keepdim=True)
    log_p = p.log()
    return SparseTargets(
        ids=torch.arange(z.shape[-1]).expand(z.shape),
        logits=share.log(),
        lse={temperature: torch.zeros(len(z))},
        label=torch.zeros(len(z), dtype=z.dtype),
        entropy=-(p * log_p).sum(-1),
        vocab=z.shape[-1],
        support="sampled",
    )


def sampled(teacher):
    """The teacher of `tests.kernels.kit.models` on its batch, as a few draws."""
    z = teacher.head(teacher.hidden.clone()).detach()
    return only(drawn(z[batch().targets >= 0, :11], 1, 0.5))


def hellinger(p, q, y, f):
    """Also where the shares do not add up to 1."""
    return 0.5 * (p.sqrt() - q.sqrt()).square().sum(-1)


FORMULAS = GOLDEN | {"Hellinger": hellinger}


def plain(cls, z_s, z_t, targets, k, support, temperature=1.0):
    """`[N]` by the definition: probabilities of both models, cut, summed, divided."""
    p, q = (z_t / temperature).softmax(-1), (z_s / temperature).softmax(-1)
    values = []
    for a, b, z, y in zip(p, q, z_t, targets.tolist(), strict=True):
        ids = z.topk(k).indices.tolist()
        if cls.__name__ == "DecoupledKD" and y not in ids:
            ids.append(y)
        others = [v for v in range(len(a)) if v not in ids]
        a_few, b_few = a[ids], b[ids]
        if support == "tail" and others:
            a_few = torch.cat([a_few, a[others].sum()[None]])
            b_few = torch.cat([b_few, b[others].sum()[None]])
        if support in ("both_renormalised", "teacher_renormalised"):
            a_few = a_few / a_few.sum()
        if support == "both_renormalised":
            b_few = b_few / b_few.sum()
        label = torch.tensor([ids.index(y) if y in ids else -1])
        a_few, b_few = a_few[None], b_few[None]
        values.append(FORMULAS[cls.__name__](a_few, b_few, label, b_few.detach()))
    return torch.cat(values)
