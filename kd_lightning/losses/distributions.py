"""What a loss sees of a chunk of tokens: both models' logits and distributions."""

from __future__ import annotations

import torch
from torch import Tensor


class Tokens:
    """A chunk of counted tokens: the logits of both models and their log-softmax, made once."""

    complete = True
    """Whether the student's compared probabilities add up to 1."""
    places: Tensor | None = None
    """Flat positions of the tokens in the batch, `[N]`, for losses that differ from row to row."""

    def __init__(
        self,
        student: Tensor,
        teacher: Tensor | None,
        targets: Tensor,
        vocab: int,
    ) -> None:
        """`student [N, V_s]`, `teacher [N, V_t]` logits; `vocab`: the ids that both models know."""
        self.student = _upcast(student)
        self.teacher = None if teacher is None else _upcast(teacher)
        self.targets = targets
        self.vocab = vocab
        self._made: dict[tuple[str, float], Tensor] = {}

    def log_s(self, temperature: float = 1.0) -> Tensor:
        """Student log-probabilities over the shared ids, `[N, V]`."""
        return self._log("s", self.student, temperature)

    def log_t(self, temperature: float = 1.0) -> Tensor:
        """Teacher log-probabilities over the shared ids, `[N, V]`; no gradient."""
        if self.teacher is None:
            raise AssertionError("a loss that reads the teacher must declare it in `needs`")
        return self._log("t", self.teacher, temperature)

    def nll(self) -> Tensor:
        """Student -log p(target) over all of its own rows, `[N]`: what cross-entropy sums."""
        z = self.student
        return z.logsumexp(-1) - z.gather(-1, self.targets[:, None]).squeeze(-1)

    def compared(self, temperature: float, label: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """What a divergence compares: `log_s`, `log_t` and the label's place among them, `[N]`.

        `label`: whether the place is read.
        """
        return self.log_s(temperature), self.log_t(temperature), self.targets

    def settled(self, values: Tensor, temperature: float) -> Tensor:
        """Values of a divergence `[N]`, with what `compared` could not tell put in."""
        return values

    def by_logits(self, slope: Tensor, temperature: float, label: bool = False) -> Tensor:
        r"""From derivatives r by the student's `compared` to T times those by its logits, in place.

        .. math:: T \frac{\partial D}{\partial z_v} = r_v - q_v \sum_u r_u
        """
        q = self.log_s(temperature).exp()
        return slope.addcmul_(q, slope.sum(-1, keepdim=True), value=-1)

    def with_leaf(self) -> Tokens:
        """The same tokens, with the student's logits as what derivatives are taken by."""
        leaf = self.student.detach().requires_grad_()
        same = Tokens(leaf, self.teacher, self.targets, self.vocab)
        same._made = {key: made for key, made in self._made.items() if key[0] == "t"}
        same.places = self.places
        return same

    def _log(self, who: str, logits: Tensor, temperature: float) -> Tensor:
        key = (who, temperature)
        if key not in self._made:
            shared = logits[:, : self.vocab]
            shared = shared / temperature if temperature != 1.0 else shared
            self._made[key] = log_softmax(shared)
        return self._made[key]


def _upcast(logits: Tensor) -> Tensor:
    """Half precision to float32 before any softmax; float32 and float64 as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities `[N, V]`.

    On a processor torch adds a float32 row up in few long sums: at 32,000 ids every log-probability
    is 2e-6 too high. There a row is taken in parts, put together by their own log-sum-exps: 1e-7.
    """
    vocab = logits.shape[1]
    parts = next((k for k in range(64, 15, -1) if vocab % k == 0), 1)
    exact = logits.device.type != "cpu" or logits.dtype != torch.float32 or vocab < 4096
    if exact or parts == 1 or logits.requires_grad:
        return logits.log_softmax(-1)
    pieces = logits.reshape(len(logits), parts, -1)
    logs = pieces.log_softmax(-1)
    lse = pieces.amax(-1) - logs.amax(-1)  # [N, parts]
    logs += (lse - lse.logsumexp(-1, keepdim=True))[..., None]
    return logs.flatten(1)
