"""The shift, the masks and the padding."""

import numpy as np
import torch

from kd_lightning.data.collate import Collate, Filler
from kd_lightning.data.encoding import Encoded, Encoder
from kd_lightning.types import IGNORE, Example, Message, Source
from tests.data import kit


def row(ids, weights, **more):
    example = Example.dialogue(id=f"r{len(ids)}", user="q", assistant="a", **more)
    return Encoded(example, np.array(ids, np.int32), np.array(weights, np.float32))


def test_position_t_predicts_token_t_plus_1():
    batch = Collate(9, {"x": 0})([row([1, 2, 3, 4], [0, 0, 1, 0.5]), row([5, 6], [0, 1])])
    assert batch.input_ids.tolist() == [[1, 2, 3], [5, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.targets.tolist() == [[IGNORE, 3, 4], [6, IGNORE, IGNORE]]
    assert batch.weights.tolist() == [[0, 1, 0.5], [1, 0, 0]]
    assert batch.input_ids.dtype == batch.targets.dtype == torch.int64
    assert batch.weights.dtype == torch.float32
    assert batch.ids == ("r4", "r2")


def test_source_and_skill():
    rows = [row([1, 2], [0, 1], skill="b", source=Source.STUDENT), row([1, 2], [0, 1], skill="a")]
    batch = Collate(0, {"a": 0, "b": 1})(rows)
    assert batch.source.tolist() == [2, 0]
    assert batch.skill.tolist() == [1, 0]


def test_fillers_stand_last_teach_nothing_and_have_no_example():
    whole = row([1, 2, 3], [0, 1, 1])
    batch = Collate(0, {})([Filler(whole), whole])
    assert batch.ids == ("r3", "")
    assert len(batch.examples) == 1
    assert batch.targets.tolist() == [[2, 3], [IGNORE, IGNORE]]
    assert batch.weights[1].sum() == 0
    assert batch.attention_mask[1].sum() == 2


def test_the_end_is_learned_and_padding_is_not_where_both_have_one_id():
    tokenizer = kit.byte_tokenizer(pad=None)
    tokenizer.pad_token = tokenizer.eos_token
    encoder = Encoder(tokenizer)
    long = Example.dialogue(id="long", user="question", assistant="an answer")
    short = Example("short", (Message("user", "q"), Message("assistant", "a")))
    rows = [encoder.conversation(e) for e in (long, short)]
    batch = Collate(tokenizer.pad_token_id, {})(rows)
    end = tokenizer.eos_token_id
    for i, whole in enumerate(rows):
        learned = batch.targets[i][batch.targets[i] != IGNORE].tolist()
        assert learned.count(end) == 1
        assert learned[-1] == end
        assert batch.attention_mask[i].sum() == len(whole) - 1
        assert (batch.targets[i][len(whole) - 1 :] == IGNORE).all()
    assert batch.input_ids[1, -1] == end  # padding, and yet not attended
    assert batch.attention_mask[1, -1] == 0
