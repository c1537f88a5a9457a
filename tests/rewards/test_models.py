"""Reward models and likelihood ratios on small random models."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from kd_lightning.data.collate import Collate
from kd_lightning.data.encoding import Encoder
from kd_lightning.errors import KDError
from kd_lightning.losses.comparators import Logistic
from kd_lightning.losses.ranking import Ranking
from kd_lightning.losses.scores import LogRatio, ScalarHead
from kd_lightning.rewards.head import head_of, write_head
from kd_lightning.rewards.ratio import Ratio
from kd_lightning.rewards.reward_model import RewardModel
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import Example, Message
from tests.rewards.kit import Says, batch_of, checked
from tests.tiny import config, save_model, tokenizer

TEXTS = ["yes", "no, never", "a b c d e f"]
PROMPTS = ["Is it?", "Why do you ask me that?", "Say"]


def rows(known, last=None):
    """Ids of each conversation, without anything between them."""
    made = []
    for prompt, text in zip(PROMPTS, TEXTS, strict=True):
        turns = (Message("user", prompt), Message("assistant", text))
        made.append(Encoder(known).conversation(Example("r", turns)).ids.tolist()[:last])
    return made


def test_the_head_reads_the_state_before_the_last_word(tmp_path):
    save_model(tmp_path, seed=3)
    weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
    write_head(tmp_path, weight)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = []
    for ids in rows(tokenizer(), -1):
        states = model.base_model(torch.tensor([ids])).last_hidden_state.detach()
        expected.append(float(states[0, -1] @ weight))
    reward = checked(RewardModel(str(tmp_path), rows=2, dtype="float32"))
    assert reward(batch_of(PROMPTS), TEXTS).tolist() == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3
    short = checked(RewardModel(str(tmp_path), max_length=42, scale=2.0))
    found = short(batch_of(PROMPTS), TEXTS)
    assert found[0].item() == pytest.approx(2 * expected[0], abs=1e-5)
    assert found.isnan().tolist() == [False, True, False]  # 37, 60 and 42 tokens
    assert short.logs() == {"too long": 1.0}


def test_it_gives_what_the_loss_trained(tmp_path):
    """The score of `Ranking` on an encoded row is the reward of the same conversation."""
    from kd_lightning.models import loading
    from kd_lightning.models.causal import CausalLM

    save_model(tmp_path, seed=4)
    model = CausalLM(loading.load_model(str(tmp_path), dtype="float32"), tokenizer())
    loss = Ranking(ScalarHead(16), Logistic())
    torch.manual_seed(0)
    loss.score.weight.data.normal_()
    example = Example.dialogue(id="r0", user=PROMPTS[0], assistant=TEXTS[0])
    batch = Collate(0, {})([Encoder(tokenizer()).conversation(example)])
    output = model(batch)
    logp = torch.zeros(batch.targets.shape)
    said = loss._said(output, None, batch, logp)
    write_head(tmp_path, head_of(loss))
    reward = checked(RewardModel(str(tmp_path), dtype="float32"))
    found = reward(batch_of([PROMPTS[0]]), [TEXTS[0]])
    assert found.item() == pytest.approx(loss.score(said).item(), abs=1e-5)


def classifier(folder, **more):
    fields = {k: v for k, v in config().items() if k != "model_type"}
    known = tokenizer()
    torch.manual_seed(5)
    made = LlamaConfig(
        vocab_size=len(known), num_labels=2, initializer_range=0.5, **{**fields, **more}
    )
    made.pad_token_id = known.eos_token_id  # as many models have it
    model = LlamaForSequenceClassification(made).eval()
    model.save_pretrained(folder)
    known.save_pretrained(folder)
    return model


def test_a_classifier_sees_the_end_token_although_it_is_the_padding(tmp_path):
    model = classifier(tmp_path)
    model.config.pad_token_id = 0
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits for ids in rows(tokenizer())]
    expected = [float(each[0, 1]) for each in logits]
    reward = checked(RewardModel(str(tmp_path), label=1))
    assert reward(batch_of(PROMPTS), TEXTS).tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(KDError, match="label 2 is none of 2"):
        checked(RewardModel(str(tmp_path), label=2))


def test_an_encoder_reads_question_and_answer_as_two_segments(tmp_path):
    known = tokenizer()
    torch.manual_seed(6)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    made = BertConfig(vocab_size=len(known), num_hidden_layers=1, num_labels=1, **shape)
    model = BertForSequenceClassification(made).eval()
    model.save_pretrained(tmp_path)
    known.save_pretrained(tmp_path)
    expected = [
        float(model(**known(p, t, return_tensors="pt")).logits[0, 0])
        for p, t in zip(PROMPTS, TEXTS, strict=True)
    ]
    reward = checked(RewardModel(str(tmp_path), form="pair"))
    assert reward(batch_of(PROMPTS), TEXTS).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    save_model(tmp_path)
    with pytest.raises(KDError, match="has no trained head"):
        checked(RewardModel(str(tmp_path)))
    with pytest.raises(KDError, match="belongs to another model"):
        write_head(tmp_path, torch.ones(3))
        checked(RewardModel(str(tmp_path)))
    with pytest.raises(KDError, match=r"reward_model\.yaml"):
        head_of(Ranking(LogRatio(), Logistic()))


def test_ratio_is_the_teachers_likelihood_less_that_of_who_drew(tiny_teacher):
    teacher = LocalTeacher(tiny_teacher)
    ratio = checked(Ratio(teacher))
    batch = batch_of(["q", "q"], behaviour=torch.full((2, 4), -0.5))
    ids = batch.input_ids
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    knows = model(ids).logits[0].log_softmax(-1)[2:, 1].sum().item()
    assert ratio(batch, ["x", "x"]).tolist() == pytest.approx([knows + 1.0] * 2, abs=1e-4)
    mean = checked(Ratio(teacher, average=True))
    assert mean(batch, ["x", "x"]).tolist() == pytest.approx([(knows + 1) / 2] * 2, abs=1e-4)
    with pytest.raises(KDError, match="drawn with"):
        ratio(batch_of(["q"]), ["x"])
    with pytest.raises(KDError, match="write a LocalTeacher"):
        checked(Ratio(), Says())
