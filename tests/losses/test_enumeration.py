"""Expected gradients, exactly: every answer of three words over three ids, weighed by its chance.

The losses are the library's own; what they should descend is written down from probabilities.
"""

from itertools import product

import pytest
import torch

from kd_lightning.losses.advantages import GAE, GRPO, RLOO, DrGRPO, Reinforce, TokenReturn
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.losses.penalties import K2, K3, FullKL, ScoreKL
from kd_lightning.losses.policy import PolicyGradient
from kd_lightning.losses.surrogates import ClippedRatio, ImportanceWeighted
from kd_lightning.losses.value_head import ValueHead
from kd_lightning.types import Batch, ModelOutput
from tests.losses.kit import Same

V, T = 3, 3
ANSWERS = list(product(range(V), repeat=T))
PREFIXES = {p: i for i, p in enumerate(p for n in range(T) for p in product(range(V), repeat=n))}
NODES = torch.tensor([[PREFIXES[y[:t]] for t in range(T)] for y in ANSWERS])  # [27, T]
WORDS = torch.tensor(ANSWERS)  # [27, T]


def logits(seed):
    """Of the next word after every prefix, `[13, V]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64)


def words(z):
    """log p of each word of each answer, `[27, T]`."""
    return z.log_softmax(-1)[NODES].gather(-1, WORDS[..., None]).squeeze(-1)


@pytest.fixture
def student():
    return logits(0).requires_grad_()


@pytest.fixture
def teacher():
    return logits(1)


def batch(chance, **known):
    """All answers, or `rows` of them, each weighed by a chance `[R]`."""
    rows = known.pop("rows", torch.arange(len(ANSWERS)))
    ones = torch.ones(len(rows), T, dtype=torch.long)
    zeros = torch.zeros(len(rows), dtype=torch.long)
    weights = chance.detach()[:, None].expand(len(rows), T)
    return Batch(WORDS[rows], ones, WORDS[rows], weights, zeros, zeros, **known), rows


def model(z, rows):
    return ModelOutput(z[NODES[rows]], Same(V))


def expected(loss, student, teacher, chance=None, **known):
    """The gradient of a loss's sum over answers times their chances, `[13, V]`; and the sum."""
    chance = words(student).sum(1).exp() if chance is None else chance
    made, rows = batch(chance, **known)
    value = sum(loss(model(student, rows), model(teacher, rows), made).terms.values())
    return torch.autograd.grad(value, student)[0], value.item()


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def differ(a, b, by=1e-3):
    assert (a - b).abs().max() > by


def sequence_kl(student, teacher):
    q, p = words(student).sum(1), words(teacher).sum(1)
    return (q.exp() * (q - p)).sum()


def policy(advantage=None, **settings):
    """The sum over answers and words of a policy gradient's loss."""
    return PolicyGradient(advantage or TokenReturn(), normalise="dr", **settings)


# ------------------------------------------------------------------ sequence-level reverse KL
def test_the_chances_add_up(student):
    assert words(student).sum(1).exp().sum().item() == pytest.approx(1, rel=1e-12)


def test_the_return_descends_the_reverse_kl_of_whole_answers(student, teacher):
    value = sequence_kl(student, teacher)
    exact = torch.autograd.grad(value, student)[0]
    got, _ = expected(policy(reward_kl=1.0), student, teacher)
    same(got, exact)
    assert exact.abs().max() > 0.05
    for other in (TokenReturn(discount=0.9), TokenReturn(per_word="remaining"), Reinforce()):
        changed, _ = expected(policy(other, reward_kl=1.0), student, teacher)
        if isinstance(other, Reinforce):
            same(changed, exact)  # the whole reward for every word: more variance, nothing else
        else:
            differ(changed, exact)


def test_single_step_and_long_horizon_are_the_two_parts_of_it(student, teacher):
    exact = torch.autograd.grad(sequence_kl(student, teacher), student)[0]
    single, value = expected(ReverseKL(), student, teacher)
    long, _ = expected(policy(TokenReturn(following=True), reward_kl=1.0), student, teacher)
    same(single + long, exact)
    differ(single, exact, by=0.01)  # on-policy distillation by reverse KL is the first alone
    assert value == pytest.approx(sequence_kl(student, teacher).item(), rel=1e-12)


def test_the_words_own_reward_is_the_single_step_part(student, teacher):
    single, _ = expected(ReverseKL(), student, teacher)
    own, _ = expected(policy(TokenReturn(discount=0.0), reward_kl=1.0), student, teacher)
    same(own, single)


# ------------------------------------------------------------------ a reward of one's own
def rewards(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(ANSWERS), generator=generator, dtype=torch.float64)


def exact_reward(student, reward):
    value = -(words(student).sum(1).exp() * reward).sum()
    return torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("surrogate", [None, ClippedRatio()], ids=["score", "ratio"])
def test_a_baseline_changes_nothing_in_expectation(student, teacher, surrogate):
    reward = rewards()
    exact = exact_reward(student, reward)
    for baseline in (0.0, 3.0):
        loss = policy(Reinforce(baseline), surrogate=surrogate)
        same(expected(loss, student, teacher, reward=reward)[0], exact)


def test_a_value_head_changes_nothing_in_expectation_with_the_whole_trace(student, teacher):
    reward = rewards()
    head = ValueHead(V)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(2))
    for trace, right in ((1.0, True), (0.5, False)):
        loss = policy(GAE(1.0, trace), value=head, value_weight=0.0)
        got, _ = expected(loss, student, teacher, reward=reward)
        (same if right else differ)(got, exact_reward(student, reward))


def grouped(loss, student, teacher, reward):
    """The expected gradient over all pairs of answers, drawn one by one."""
    q = words(student).sum(1).exp()
    pairs = torch.cartesian_prod(torch.arange(27), torch.arange(27))  # [729, 2]
    chance = q[pairs].prod(1).repeat_interleave(2)
    group = torch.arange(len(pairs)).repeat_interleave(2)
    rows = pairs.flatten()
    return expected(
        loss, student, teacher, chance, rows=rows, reward=reward[rows], group=group
    )[0]  # fmt: skip


def test_leave_one_out_is_unbiased_and_the_centred_reward_is_half_of_it(student, teacher):
    reward = rewards()
    exact = exact_reward(student, reward)
    same(grouped(policy(RLOO()), student, teacher, reward) / 2, exact)
    same(grouped(policy(DrGRPO()), student, teacher, reward), exact)  # (G - 1) / G with G = 2
    differ(grouped(policy(GRPO()), student, teacher, reward) / 2, exact)


def test_a_penalty_in_the_reward_descends_reward_less_divergence(student, teacher):
    reward, beta = rewards(), 0.3
    exact = exact_reward(student, reward)
    exact = exact + beta * torch.autograd.grad(sequence_kl(student, teacher), student)[0]
    same(expected(policy(reward_kl=beta), student, teacher, reward=reward)[0], exact)
    same(grouped(policy(RLOO(), reward_kl=beta), student, teacher, reward) / 2, exact)


# ------------------------------------------------------------------ estimators of the divergence
def penalty(kind, student, teacher):
    """Gradient and value of a penalty alone."""
    loss = policy(Reinforce(), kl=kind, kl_weight=1.0)
    return expected(loss, student, teacher, reward=torch.zeros(27))


def test_what_the_penalties_descend(student, teacher):
    reverse, value = expected(ReverseKL(), student, teacher)
    forward, _ = expected(ForwardKL(), student, teacher)
    differ(reverse, forward, by=0.01)
    for kind in (FullKL(), K2(), ScoreKL(), K3(corrected=True)):
        same(penalty(kind, student, teacher)[0], reverse)
    same(penalty(K3(), student, teacher)[0], forward)  # not what it is the value of
    assert penalty(FullKL(), student, teacher)[1] == pytest.approx(value, rel=1e-9)
    assert penalty(ScoreKL(), student, teacher)[1] == pytest.approx(value, rel=1e-9)
    assert penalty(K3(), student, teacher)[1] == pytest.approx(value, rel=1e-9)
    assert abs(penalty(K2(), student, teacher)[1] - value) > 0.01


def test_the_corrected_penalty_holds_for_an_older_policys_words(student, teacher):
    reverse, _ = expected(ReverseKL(), student, teacher)
    old = (0.7 * words(student).exp() + 0.1).log().detach()
    last = policy(Reinforce(), kl=K3(corrected=True), kl_weight=1.0)
    plain = policy(Reinforce(), kl=K3(), kl_weight=1.0)
    # prefixes as the student says them, last words as the older policy does
    chance = words(student)[:, :-1].sum(1).exp() * old[:, -1].exp()
    behaviour = torch.cat([words(student)[:, :-1].detach(), old[:, -1:]], 1)
    known = {"behaviour": behaviour, "reward": torch.zeros(27)}
    deep = torch.tensor([len(p) == T - 1 for p in PREFIXES])  # only these say last words
    same(expected(last, student, teacher, chance, **known)[0][deep], reverse[deep])
    differ(expected(plain, student, teacher, chance, **known)[0][deep], reverse[deep])


def test_the_plain_log_ratio_as_a_loss_descends_nothing(student, teacher):
    q = words(student)
    value = (q.sum(1).exp().detach()[:, None] * (q - words(teacher))).sum()
    same(torch.autograd.grad(value, student)[0], torch.zeros_like(student))


# ------------------------------------------------------------------ words of a mixture
def mixed(student, teacher, share=0.2):
    """Log-probabilities of the words under a mixture with the teacher, and answers' chances."""
    old = (share * words(teacher).exp() + (1 - share) * words(student).exp()).log().detach()
    return old, old.sum(1).exp()


@pytest.mark.parametrize(
    ("level", "right"), [("answer", True), ("prefix", False), ("token", False)]
)
def test_only_the_product_over_the_answer_is_unbiased_for_the_return(
    student, teacher, level, right
):
    exact = torch.autograd.grad(sequence_kl(student, teacher), student)[0]
    old, chance = mixed(student, teacher)
    loss = policy(surrogate=ImportanceWeighted(level=level), reward_kl=1.0)
    got, _ = expected(loss, student, teacher, chance, behaviour=old)
    (same if right else differ)(got, exact)


@pytest.mark.parametrize(("level", "right"), [("answer", True), ("prefix", True), ("token", False)])
def test_the_product_so_far_is_enough_for_the_words_own_reward(student, teacher, level, right):
    single, _ = expected(ReverseKL(), student, teacher)
    old, chance = mixed(student, teacher)
    surrogate = ImportanceWeighted(level=level)
    loss = policy(TokenReturn(discount=0.0), surrogate=surrogate, reward_kl=1.0)
    got, _ = expected(loss, student, teacher, chance, behaviour=old)
    (same if right else differ)(got, single)
