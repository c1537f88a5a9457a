"""Who computes the tiles; compiled tiles equal torch's, and are compiled once."""

import dataclasses
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from kd_lightning.errors import KDError
from kd_lightning.kernels import backends, compiled, eager, linear_loss
from kd_lightning.losses.jensen_shannon import JensenShannon
from kd_lightning.losses.kl import ForwardKL, ReverseKL
from kd_lightning.losses.sft import CrossEntropy
from kd_lightning.losses.tokens import TokenSum
from kd_lightning.losses.weighted import Term, Weighted
from kd_lightning.types import SparseTargets
from tests.kernels.kit import (
    COUNTED,
    EVERY,
    HEADS,
    Squares,
    batch,
    by_hand,
    close,
    even,
    gradients,
    models,
)

FORMULA, SLOPE, NEITHER = ForwardKL().formula(), (None, True), (None, False)
ALL = {"kl": (FORMULA, True)}


def test_the_choice(monkeypatch):
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    assert backends.pick("cpu", ALL) == "torch"
    assert backends.pick("mps", ALL) == "torch"
    assert backends.pick("cuda", ALL) == "triton"
    assert backends.pick("cuda", ALL | {"dkd": SLOPE}) == "compile"
    assert backends.pick("cuda", ALL | {"own": NEITHER}) == "torch"
    assert backends.pick("cuda", ALL, whole=False) == "torch"
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    assert backends.pick("cuda", ALL) == "torch"
    with warnings.catch_warnings(), backends.kernel("torch"):
        warnings.simplefilter("error")
        assert backends.pick("cuda", ALL) == "torch"


def test_what_is_asked_for_and_cannot_be(monkeypatch):
    def refused(name, device, terms=ALL, **more):
        with backends.kernel(name), pytest.raises(KDError) as caught:
            backends.pick(device, terms, **more)
        return str(caught.value)

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    assert "pip install triton" in refused("triton", "cuda")
    assert "pip install triton" in refused("compile", "cuda")
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    assert "not on cpu" in refused("triton", "cpu")
    assert "loss dkd" in refused("triton", "cuda", ALL | {"dkd": SLOPE})
    assert "compare_with_slope" in refused("compile", "cuda", {"own": NEITHER})
    assert "few ids" in refused("triton", "cuda", whole=False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "C++ compiler" in refused("compile", "cpu")
    assert backends.pick("cpu", ALL) == "torch"


def test_no_compiler_is_looked_for_where_none_is_needed(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with backends.kernel("compile"), pytest.raises(KDError, match=r"C\+\+"):
        TokenSum({"kl": ForwardKL()}, *models(), batch()).terms()
    TokenSum({"kl": ForwardKL()}, *models(), batch()).terms()


def test_a_teacher_on_a_few_ids_goes_by_torch():
    student, teacher = models()
    number = int((batch().targets >= 0).sum())
    few = SparseTargets(
        torch.arange(3).repeat(number, 1), torch.zeros(number, 3),
        {1.0: torch.full((number,), 2.0)}, torch.zeros(number), torch.zeros(number), 11,
    )  # fmt: skip
    teacher = dataclasses.replace(teacher, sparse=few)
    made = TokenSum({"kl": ForwardKL()}, student, teacher, batch())
    assert made.job()[0].back_end == "torch"
    with backends.kernel("compile"), pytest.raises(KDError, match="few ids"):
        made.job()


def test_losses_within_losses_are_asked():
    """As a Distiller asks at set-up."""
    loss = Weighted({"a": Term(Weighted({"kl": Term(ForwardKL())})), "ce": Term(CrossEntropy())})
    found = {type(x).__name__ for x in loss.modules() if hasattr(x, "formula")}
    assert found == {"ForwardKL", "CrossEntropy"}


@pytest.fixture
def small(monkeypatch):
    """Blocks of 4 tokens, and nothing compiled before."""
    monkeypatch.setitem(compiled.ROWS, "cpu", 4)
    compiled.compiled.cache_clear()
    torch._dynamo.reset()
    with backends.kernel("compile"):
        yield
    compiled.compiled.cache_clear()


@pytest.fixture
def traced(small, monkeypatch):
    """The graphs run by torch, uncompiled: what depends on tracing alone takes no compiler."""
    counter = CompileCounterWithBackend("eager")
    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: own(f, backend=counter, **how))
    return counter


def fused(losses, student, teacher, rows, chunk):
    made = TokenSum(losses, student, teacher, rows, chunk)
    assert made.job()[0].back_end == "compile"
    return torch.stack(list(made.terms().values()))


STATED = [loss for loss in EVERY if loss.states_slope]


def test_who_states_its_slope():
    names = {type(loss).__name__ for loss in EVERY if not loss.states_slope}
    assert names == {"DecoupledKD", "Squares", "Label", "Changed", "ChangedRow"}


@pytest.mark.parametrize("loss", STATED, ids=lambda x: type(x).__name__)
def test_traced_in_one_graph(loss, traced):
    student, teacher = models(**HEADS["padded"])
    want = by_hand({"x": loss}, student, teacher, batch())
    got = fused({"x": loss}, student, teacher, batch(), 8)
    close([got], [want])
    close(gradients(got, student), gradients(want, student))
    with torch.no_grad():
        close([fused({"x": loss}, student, teacher, batch(), 8)], [want.detach()])
    assert traced.frame_count <= 2  # with and without gradients


@pytest.mark.parametrize("how", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("chunk", [1, 5, 8, 100])
def test_heads_and_several_terms(how, chunk, traced):
    student, teacher = models(**how)
    losses = {"ce": CrossEntropy(), "kl": ForwardKL(2.0, True), "jsd": JensenShannon(0.3, 1.5)}
    factors = dict(zip(losses, (0.3, -2.0, 5.0), strict=True))
    want = by_hand(losses, student, teacher, batch())
    mixed = (want * torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)).sum()
    total, terms = TokenSum(losses, student, teacher, batch(), chunk).total(
        factors, even(losses)[1]
    )
    close([total, torch.stack(list(terms.values()))], [mixed, want.detach()])
    close(gradients(total, student), gradients(mixed, student))


def test_nothing_is_compiled_again_for_another_number_of_tokens(traced):
    losses = {"ce": CrossEntropy(), "kl": ForwardKL()}
    for ignored in range(COUNTED):
        student, teacher = models()
        weights = batch().weights.flatten()
        weights[weights.nonzero().squeeze(-1)[:ignored]] = 0
        rows = batch().replace(weights=weights.view(3, 6))
        total = TokenSum(losses, student, teacher, rows, 8).total(*even(losses))[0]
        total.backward()
        assert traced.frame_count == 1
    again = TokenSum(losses, student, teacher, batch().masked(), 8).total(*even(losses))[0]
    assert again == 0 and traced.frame_count == 1
    TokenSum({"kl": ForwardKL()}, *models(), batch(), 8).terms()["kl"].backward()
    assert traced.frame_count == 2


def test_a_loss_that_moves_is_not_compiled_again(traced):
    """TAID's share of the teacher changes in every step."""
    loss = next(x for x in EVERY if x.name == "taid")
    student, teacher = models()
    found = []
    for t in (0.4, 0.5, 0.7, 0.9):
        loss.t.fill_(t)
        want = by_hand({"x": loss}, student, teacher, batch())
        close([fused({"x": loss}, student, teacher, batch(), 8)], [want])
        found.append(want.item())
    assert len(set(found)) == 4 and traced.frame_count == 1


class Untraceable(ForwardKL):
    """Looks at a value."""

    def compare_with_slope(self, log_s, log_t, targets):
        return super().compare_with_slope(log_s, log_t, targets * int(log_s.sum().item() < 0))


def test_a_loss_that_cannot_be_compiled_says_so(traced):
    with pytest.raises(KDError, match="kernel: torch"):
        TokenSum({"x": Untraceable()}, *models(), batch(), 8).terms()
    with pytest.raises(KDError, match="the loss x"):
        TokenSum({"x": Squares()}, *models(), batch(), 8).terms()


@pytest.mark.skipif(not backends.has_compiler(), reason="no C++ compiler")
def test_compiled(small):
    """Through the compiler, with a block that is not full."""
    losses = {"ce": CrossEntropy(), "jsd": JensenShannon(0.3, 1.5)}
    student, teacher = models(**HEADS["padded"])
    want = by_hand(losses, student, teacher, batch())
    total, _ = TokenSum(losses, student, teacher, batch(), 8).total(*even(losses))
    close([total], [want.sum()])
    close(gradients(total, student), gradients(want.sum(), student))


@pytest.mark.slow
@pytest.mark.skipif(not backends.has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("loss", STATED, ids=lambda x: type(x).__name__)
def test_compiled_every_loss(loss, small):
    student, teacher = models(**HEADS["everything"])
    want = by_hand({"x": loss}, student, teacher, batch())
    got = fused({"x": loss}, student, teacher, batch(), 8)
    close([got], [want])
    close(gradients(got, student), gradients(want, student))


@pytest.mark.parametrize("back_end", ["torch", "compile"])
@pytest.mark.parametrize("learns", [True, False])
def test_every_token_is_shown_once_before_it_is_overwritten(back_end, learns, traced):
    student, teacher = models(bias=True)
    with backends.kernel(back_end):
        made = TokenSum({"kl": ForwardKL(), "r": ReverseKL()}, student, teacher, batch(), 5)
        job, plain = made.job()
    seen = []
    job = dataclasses.replace(
        job,
        watch=lambda *x: seen.append((x[0].clone(), x[1].clone(), x[2], torch.is_grad_enabled())),
    )
    weights = torch.ones(2, COUNTED)
    for way in (linear_loss.values, lambda *x: linear_loss.total(*x, weights)[0]):
        states = made.states()
        with torch.set_grad_enabled(learns):
            found = way(job, states, plain.weight, plain.bias)
        if learns:
            found.sum().backward()
        shown = [i for *_, there, _ in seen for i in range(there.start, there.stop)]
        assert shown == list(range(COUNTED))
        close([torch.cat([x[0] for x in seen])], [student.head(states).detach()])
        close([torch.cat([x[1] for x in seen])], [teacher.head(job.hidden_t.clone()).detach()])
        assert not any(x[3] for x in seen)
        seen.clear()


def test_blocks_are_cut_by_their_bytes(monkeypatch):
    monkeypatch.setitem(eager.BLOCK_BYTES, "cpu", 3 * 8 * 10)
    found = [(x.start, x.stop) for x in eager.blocks(torch.zeros(8, 10, dtype=torch.float64))]
    assert found == [(0, 3), (3, 6), (6, 8)]
