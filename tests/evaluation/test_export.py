from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd_lightning.errors import KDError
from kd_lightning.evaluation.card import CardFacts
from kd_lightning.evaluation.export import export
from kd_lightning.models.spec import LoraSpec
from tests.evaluation.pair import distiller, documents, instructions, ready
from tests.evaluation.test_report import COLUMNS
from tests.tiny import config, save_model

STUDENTS = {
    "full": {"config": config(tie_word_embeddings=False)},
    "tied": {"config": config(tie_word_embeddings=True)},
    "lora": {"path": "teacher", "lora": LoraSpec(rank=4)},
    "cut": {"path": "teacher", "layers": 2},
    "cut_list_lora": {"path": "teacher", "layers": [0, 2], "lora": LoraSpec(rank=2)},
}


def trained(module) -> None:
    """Weights that no initialisation gives, adapters included."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.student.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_exported_folder_is_the_student(kind, tmp_path, tiny_teacher):
    spec = dict(STUDENTS[kind])
    if "path" in spec:
        spec["path"] = tiny_teacher
    module, data = distiller(tiny_teacher, tiny_teacher, **spec), instructions(tmp_path)
    ready(module, data)
    trained(module)
    folder = export(module, tmp_path / "student", data=data)
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(4, 80, (3, 20))
    with torch.no_grad():
        expected = module.student.eval().transformer(input_ids=ids).logits
        found = loaded(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any("lora" in name for name in loaded.state_dict())
    assert loaded.config.num_hidden_layers == (2 if kind != "lora" else 3)


def test_the_folder_answers_as_the_student_does(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    folder = export(module, tmp_path / "student", data=data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    example = data.examples("validation")[0]
    messages = [{"role": m.role, "content": m.content} for m in example.prompt]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert asked == data.prompt_ids(example)  # the template that it was trained with went along
    ids = torch.tensor([asked])
    made = AutoModelForCausalLM.from_pretrained(folder).generate(ids, max_new_tokens=6)
    answer = module.student.complete([asked], module.answers)[0]
    assert tuple(made[0, len(asked) :].tolist()) == answer.tokens
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == tokenizer.eos_token_id
    assert settings["pad_token_id"] == tokenizer.pad_token_id


def test_documents_give_no_chat_template(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), documents(tmp_path)
    ready(module, data)
    folder = export(module, tmp_path / "student", data=data)
    assert AutoTokenizer.from_pretrained(folder).chat_template is None


def test_the_card_tells_how_it_was_made(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data, "fit")
    facts = CardFacts(
        licences={"teacher": "mit", "data": "mit"},
        results=COLUMNS,
        weights="last weights (step 4)",
        command="kd fit -c mine.yaml",
    )
    folder = export(module, tmp_path / "student", data=data, card=facts)
    card = ModelCard.load(folder / "README.md")
    text = card.content
    assert card.data.license == "mit" and "ForwardKL" in card.data.tags
    for told in (
        tiny_teacher,
        "rows.jsonl",
        "ForwardKL(temperature=1.0",
        "kd fit -c mine.yaml",
        "| KL(teacher ‖ model), nats ↓ | – | 3.0000 | **0.2500** |",
        "last weights (step 4)",
        f"torch {torch.__version__}",
    ):
        assert told in text, told


def test_a_licence_that_nobody_states_is_not_invented(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    card = ModelCard.load(export(module, tmp_path / "student", data=data) / "README.md")
    assert card.data.license == "unknown" and "not stated" in card.content


def test_other_logits_are_refused_and_nothing_is_left(tmp_path, tiny_teacher, monkeypatch):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    monkeypatch.setattr(
        type(module.student), "save", lambda self, folder: save_model(folder, seed=9)
    )
    with pytest.raises(KDError, match="other logits"):
        export(module, tmp_path / "student")
    assert not [p for p in tmp_path.iterdir() if "student" in p.name]


def test_a_folder_in_use_is_refused(tmp_path, tiny_teacher):
    module, data = distiller(tiny_teacher, tiny_teacher), instructions(tmp_path)
    ready(module, data)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "thesis.txt").write_text("mine")
    with pytest.raises(KDError, match="not empty"):
        export(module, tmp_path / "student")
    assert (tmp_path / "student" / "thesis.txt").read_text() == "mine"
