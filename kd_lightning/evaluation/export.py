"""The student as a Hugging Face folder that is proven to be the student."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from kd_lightning.errors import KDError
from kd_lightning.evaluation.card import CardFacts, make_card
from kd_lightning.evaluation.measure import evaluating
from kd_lightning.models.causal import CausalLM
from kd_lightning.models.generation import end_tokens
from kd_lightning.parallel.whole import in_one_piece
from kd_lightning.types import IGNORE, Batch

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule
    from kd_lightning.distiller import Distiller

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Largest difference of logits, as a share of the largest logit: merging adapters rounds."""


def export(
    distiller: Distiller,
    folder: Path,
    *,
    student: CausalLM | None = None,
    data: KDDataModule | None = None,
    card: CardFacts | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the student, read it back, compare the logits; the folder appears only if they agree.

    Args:
        distiller: with its student built and in place.
        folder: where `AutoModelForCausalLM.from_pretrained` will find it.
        student: its student in one piece; None: it is whole and unquantised where it stands.
        data: what it was trained on: named in the card, with its chat template.
        card: what the model card tells beyond the Distiller's own settings.
        overwrite: replace a folder that exists.
    """
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise KDError(f"{folder} is not empty: write another folder for the exported student")
    if data is not None and not data.summary:
        data.setup("fit")  # the card counts the rows and names their licences
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    try:
        student = student or in_one_piece(distiller.student, distiller.spec)
        assert student is not None, "the first process exports"
        student.save(part)
        _tokenizer(student, part, data)
        _generation(student, part)
        make_card(distiller, data, card).save(part / "README.md")
        verify(student, part)
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def verify(student: CausalLM, folder: Path) -> None:
    """Refuse a folder whose logits are not the student's."""
    dtype = student.transformer.dtype
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=student.transformer.config._attn_implementation
    )
    assert isinstance(loaded, PreTrainedModel)
    torch.nn.Module.to(loaded, student.device).eval()
    batch = _probe(student)
    with torch.no_grad(), evaluating(student):
        expected = student(batch).logits.float()
        ids, mask = batch.input_ids, batch.attention_mask
        found = loaded(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    difference = float((expected - found).abs().max()) if expected.shape == found.shape else None
    limit = TOLERANCE.get(dtype, 1e-4) * max(1.0, float(expected.abs().max()))
    if difference is None or not difference <= limit:
        raise KDError(
            f"the exported folder gives other logits than the student (largest difference "
            f"{difference}, allowed {limit:.2g}), so it was not written to its place"
        )
    AutoTokenizer.from_pretrained(folder)


def _probe(student: CausalLM) -> Batch:
    """Ids spread over the vocabulary, two rows."""
    limit = student.transformer.config.get_text_config().max_position_embeddings or 64
    length = min(64, limit)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, student.head.vocab, (2, length), generator=generator)
    device = student.device
    return Batch(
        input_ids=ids.to(device),
        attention_mask=torch.ones_like(ids).to(device),
        targets=torch.full_like(ids, IGNORE).to(device),
        weights=torch.zeros(2, length, device=device),
        source=torch.zeros(2, dtype=torch.int64, device=device),
        skill=torch.zeros(2, dtype=torch.int64, device=device),
    )


def _tokenizer(student: CausalLM, folder: Path, data: KDDataModule | None) -> None:
    """The chat template that the student was trained with goes along."""
    template = trained_template(student, data)
    if template is None or template == student.tokenizer.chat_template:
        return
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def trained_template(student: CausalLM, data: KDDataModule | None) -> str | None:
    """The template behind `data.template`; None where the data are documents."""
    own = student.tokenizer.chat_template
    setting = getattr(data, "template", "auto")
    if data is None or (setting == "auto" and own is not None):
        return own if isinstance(own, str) else None
    from kd_lightning.data.templates import PLAIN

    if setting not in ("auto", "plain"):
        return Path(setting).expanduser().read_text(encoding="utf-8")
    split = next((s for s in ("validation", "train", "test") if s in data.summary), None)
    if split is None or all(example.plain for example in data.examples(split)):
        return None
    return PLAIN


def _generation(student: CausalLM, folder: Path) -> None:
    """End and padding tokens that answers were made with."""
    path = folder / "generation_config.json"
    settings = GenerationConfig.from_pretrained(folder) if path.is_file() else GenerationConfig()
    ends = end_tokens(student.transformer, student.tokenizer)
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends
    settings.pad_token_id = student.tokenizer.pad_token_id
    if student.tokenizer.bos_token_id is not None:
        settings.bos_token_id = student.tokenizer.bos_token_id
    settings.save_pretrained(folder)
