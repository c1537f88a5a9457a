"""A pair that means different things by the same id is refused, and the id named."""

from __future__ import annotations

import pytest

from kd_lightning.errors import KDError
from kd_lightning.models import vocabulary
from kd_lightning.models.loading import load_tokenizer
from tests.tiny import tokenizer


def test_first_differing_id_is_named(tiny_tokenizer, stories):
    with pytest.raises(KDError, match=r"first at id 0: student '<pad>', teacher '<unk>'"):
        vocabulary.check_same(tiny_tokenizer, load_tokenizer(stories))


def test_added_tokens_at_the_end_are_no_difference(tiny_tokenizer):
    more = tokenizer(extra=("<tool>", "</tool>"))
    vocabulary.check_same(tiny_tokenizer, more)
    vocabulary.check_same(more, tiny_tokenizer)
    assert vocabulary.size(more) == vocabulary.size(tiny_tokenizer) + 2
