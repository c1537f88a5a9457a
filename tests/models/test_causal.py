"""Hidden states and head of every family give the model's own logits; students are built right."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.shrink import chosen_layers
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.types import Batch, Sampling
from tests.tiny import config

SMALL = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    vocab_size=96,
    head_dim=4,
)
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 4},
    "gemma3_text": {"query_pre_attn_scalar": 4},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 32},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
}


def batch_of(ids: torch.Tensor) -> Batch:
    ones = torch.ones_like(ids)
    zero = torch.zeros(len(ids), dtype=torch.long)
    return Batch(ids, ones, ids.roll(-1, 1), ones.float(), zero, zero)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_on_hidden_states_gives_the_models_logits(family, tiny_tokenizer):
    torch.manual_seed(0)
    made = AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(made).eval()
    for p in model.parameters():  # logits large enough for a soft cap to bend them
        torch.nn.init.normal_(p, std=0.3)
    ids = torch.randint(0, 88, (2, 9))
    wrapped = CausalLM(model, tiny_tokenizer)
    found = wrapped(batch_of(ids)).logits
    torch.testing.assert_close(found, model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    if family in ("gemma2", "granite", "cohere"):  # the plain projection would be wrong
        plain = model.get_output_embeddings()(wrapped(batch_of(ids)).hidden)
        assert (plain - found).abs().max() > 0.1


def test_unknown_family_whose_head_is_elsewhere_is_refused(tiny_tokenizer):
    made = AutoConfig.for_model(
        "bert",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=96,
        is_decoder=True,
    )
    model = AutoModelForCausalLM.from_config(made)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    with pytest.raises(KDError, match="not supported yet"):
        CausalLM(model, tiny_tokenizer)


def test_new_student_follows_the_tokenizer_and_is_in_training_mode(tiny_tokenizer):
    student = build_student(StudentSpec(config=config()), tiny_tokenizer)
    assert student.head.vocab == len(tiny_tokenizer) == student.transformer.config.vocab_size
    assert student.training and student.transformer.training


@pytest.mark.parametrize(
    ("layers", "keep", "expected"),
    [
        (2, "even", [0, 4]),
        (3, "even", [0, 2, 4]),
        (1, "even", [4]),
        (2, "first", [0, 1]),
        (2, "last", [3, 4]),
        ([1, 3], "even", [1, 3]),
    ],
)
def test_chosen_layers(layers, keep, expected):
    assert chosen_layers(5, layers, keep) == expected


@pytest.mark.parametrize("wrong", [0, 6, [4, 1], [7], []])
def test_impossible_layers_are_refused(wrong):
    with pytest.raises(KDError, match="layers"):
        chosen_layers(5, wrong, "even")


def test_student_cut_out_of_its_teacher_has_its_layers(tiny_teacher, tiny_tokenizer, tmp_path):
    whole = build_student(StudentSpec(path=tiny_teacher), tiny_tokenizer)
    cut = build_student(StudentSpec(path=tiny_teacher, layers=[0, 2]), tiny_tokenizer)
    old, new = whole.transformer.base_model.layers, cut.transformer.base_model.layers
    assert len(new) == 2 and cut.transformer.config.num_hidden_layers == 2
    for i, j in enumerate([0, 2]):
        for a, b in zip(new[i].parameters(), old[j].parameters(), strict=True):
            assert torch.equal(a, b)
    prompt = [tiny_tokenizer("abc")["input_ids"]]
    cached = cut.complete(prompt, Sampling(max_new_tokens=6))[0]
    cut.save(tmp_path / "cut")  # saved, loaded again, with a cache that knows its layers
    again = build_student(StudentSpec(path=str(tmp_path / "cut")), tiny_tokenizer)
    assert again.complete(prompt, Sampling(max_new_tokens=6))[0] == cached


def test_lora_trains_the_adapters_only(tiny_teacher, tiny_tokenizer):
    spec = StudentSpec(path=tiny_teacher, lora=LoraSpec(rank=2), gradient_checkpointing=True)
    student = build_student(spec, tiny_tokenizer)
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    ids = torch.randint(4, 80, (1, 6))
    student(batch_of(ids), lambda out: out.logits.sum()).backward()
    grads = {n for n, p in student.named_parameters() if p.grad is not None}
    assert grads == trained


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (dict(), "exactly one"),
        (dict(path="a", config={}), "exactly one"),
        (dict(config={"hidden_size": 3}), "model_type"),
        (dict(config={"model_type": "llama"}, layers=2), "path"),
    ],
)
def test_contradictory_specs(spec, words):
    with pytest.raises(KDError, match=words):
        StudentSpec(**spec)


def test_folders_that_are_no_models(tmp_path, tiny_tokenizer):
    with pytest.raises(KDError, match=r"no config\.json"):
        build_student(StudentSpec(path=str(tmp_path)), tiny_tokenizer)
    with pytest.raises(KDError, match="there is no folder"):
        build_student(StudentSpec(path="./nowhere"), tiny_tokenizer)
    with pytest.raises(KDError, match="cannot build"):
        build_student(StudentSpec(config={"model_type": "no-such-thing"}), tiny_tokenizer)
