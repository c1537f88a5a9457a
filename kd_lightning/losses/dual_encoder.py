"""How near a text lies to its question: the score of an encoder that reads each by itself."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kd_lightning.errors import KDError
from kd_lightning.losses.answers import wide
from kd_lightning.losses.scores import Said, Score


class DualEncoder(Score):
    r"""The cosine of a text and its question, which never see each other.

    .. math:: s_i = \cos\big(\bar h(x), \bar h(d_i)\big)

    with the mean :math:`\bar h` of the last hidden states over all tokens of a text, of one student
    for both. A group is a question (its row without a reward) and the texts that are compared
    (`Preference` with `apart: true`). With `ListwiseSoftmax(against: best)` it is InfoNCE, whose
    temperature is one over `Ranking`'s beta; negatives are the group's other texts, never those of
    other questions, so that how a step is split changes nothing. `HiddenStates` makes the same
    vectors of a trained student.

    Source: Karpukhin et al. 2020 (DPR), arXiv 2004.04906; the mean and one encoder for both:
    Izacard et al. 2021 (Contriever), arXiv 2112.09118 (both take the product, not its cosine).
    """

    reads_words = False
    reads_texts = True

    def forward(self, said: Said) -> Tensor:
        assert said.text is not None and said.question is not None
        if (said.question < 0).any():
            raise KDError(
                "DualEncoder compares texts with their question, and a group has none: write "
                "--data=Preference --data.apart=true"
            )
        places = normalize(wide(said.text), dim=-1)
        scores: Tensor = torch.einsum("bd,bd->b", places, places[said.question])
        return scores
