"""Checks of what goes in: files, tokenizers, template, and what the loss asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from kd_lightning.data.encoding import Encoded
from kd_lightning.doctor.findings import Finding, ok, problem, warning
from kd_lightning.doctor.paper import student_config
from kd_lightning.doctor.patient import Patient
from kd_lightning.doctor.samples import Samples, tokens_shown
from kd_lightning.evaluation.card import sources_of
from kd_lightning.models import loading
from kd_lightning.types import Signal

if TYPE_CHECKING:
    from kd_lightning.data.rows import Row

HARD = "Grüße, naïve 日本語 🙂 été\tif x:\n    return  1"
"""Text that poor tokenizers do not give back."""


def files(patient: Patient) -> Iterator[Finding]:
    """Rows can be read, from the first to the last."""
    sample = patient.sample
    names = ", ".join(sources_of(patient.data))
    told = f"{sample.rows:,} training rows" + ("" if sample.whole else " and more")
    assert sample.first is not None and sample.last is not None
    yield ok(
        f"{names}: {told}",
        f"first  {_shortly(sample.first)}",
        f"last   {_shortly(sample.last)}",
    )
    next(iter(patient.data.placed("validation")))


def tokenizers(patient: Patient) -> Iterator[Finding]:
    """The same id means the same to student and teacher, and text survives."""
    own = patient.tokenizer
    other = patient.teacher_tokenizer
    ids = {i: token for token, i in own.get_vocab().items()}
    spec = patient.distiller.spec
    if spec.path is not None and spec.tokenizer is None:
        rows = student_config(spec, own).get_text_config().vocab_size
        if len(ids) < rows / 2:
            yield problem(
                f"the tokenizer of {spec.path} knows {len(ids):,} ids and the model {rows:,}: the "
                "folder holds no tokenizer; write --model.student.tokenizer=<folder or name>"
            )
            return
    if other is None:
        yield ok(f"{len(ids):,} ids, end {_named(own, own.eos_token_id)}")
    else:
        yield from _same_map(patient, ids, other)
    texts = [m.content for e in patient.sample.examples[:50] for m in e.messages]
    encoded = [i for text in texts for i in own.encode(text[:2000], add_special_tokens=False)]
    unknown = own.unk_token_id
    lost = encoded.count(unknown) / max(1, len(encoded)) if unknown is not None else 0.0
    if lost > 0.001:
        yield warning(
            f"{lost:.1%} of the training tokens are {own.unk_token}: the tokenizer does not know "
            "this text; choose a tokenizer of its language (--model.student.tokenizer)"
        )
    for what, each in (
        ("training text", "\n".join(texts)[:1000]),
        ("text with accents and signs", HARD),
    ):
        back = str(own.decode(own.encode(each, add_special_tokens=False)))
        if "".join(back.split()) != "".join(each.split()):
            told = f"the tokenizer does not give {what} back as it was"
            yield warning(f"{told}: answers with such signs will come out changed")
            break
    pad = own.pad_token_id
    inside = sum(_inside(row, pad) for row in patient.sample.kept)
    if pad is not None and inside:
        yield warning(
            f"the padding token {_named(own, pad)} stands inside {inside} of "
            f"{len(patient.sample.kept)} answers, so it is an ordinary token of the text: give the "
            "tokenizer a pad_token of its own"
        )


def _same_map(patient: Patient, ids: dict[int, str], other: Any) -> Iterator[Finding]:
    own = patient.tokenizer
    theirs = {i: token for token, i in other.get_vocab().items()}
    shared = min(max(ids), max(theirs)) + 1
    odd = [i for i in range(shared) if ids.get(i) != theirs.get(i)]
    if odd and (patient.asked or patient.offers_logits):
        i = odd[0]
        yield problem(
            f"student and teacher mean different tokens by {len(odd):,} of {shared:,} ids, first "
            f"{i}: student {ids.get(i)!r}, teacher {theirs.get(i)!r}; give the student the "
            "teacher's tokenizer (--model.student.tokenizer), or train on the words alone "
            "(--model.loss=CrossEntropy --model.teacher=null)"
        )
        return
    more = abs(len(ids) - len(theirs))
    told = f", {more} more that only one of them knows" if more else ""
    yield ok(
        f"{shared:,} ids mean the same to student and teacher{told}; end "
        f"{_named(own, own.eos_token_id)}, padding {_named(own, own.pad_token_id)}"
    )
    texts = [m.content[:2000] for e in patient.sample.examples[:50] for m in e.messages]
    for text in (*texts, HARD):
        mine, yours = (t.encode(text, add_special_tokens=False) for t in (own, other))
        if mine != yours:
            yield warning(
                f"student and teacher cut the same text differently ({text[:40]!r}: {len(mine)} "
                f"and {len(yours)} tokens), so the teacher sees pieces it has not learned; "
                "give the student the teacher's tokenizer (--model.student.tokenizer)"
            )
            break
    for name in ("eos_token", "bos_token"):
        mine, yours = getattr(own, name), getattr(other, name)
        if mine != yours and (name == "eos_token" or None not in (mine, yours)):
            yield warning(
                f"the student's {name} is {mine!r} and the teacher's {yours!r}: they end answers "
                "differently; give the student the teacher's tokenizer (--model.student.tokenizer)"
            )


def template(patient: Patient) -> Iterator[Finding]:
    """What is learned of a row, to be looked at, and whether answers can end."""
    sample, tokenizer = patient.sample, patient.data.tokenizer
    rows = sample.encoded
    empty = [row for row in rows if not row.answered]
    total = sum(len(row) for row in rows)
    learned = sum(row.answered for row in rows)
    middle = rows[len(rows) // 2 : len(rows) // 2 + 1]
    chosen = [*rows[:1], *middle, *rows[-1:]] if len(rows) > 2 else rows
    shown = Samples([tokens_shown(row, tokenizer) for row in chosen])
    if rows and len(empty) == len(rows):
        yield problem(
            "nothing is learned from any row: the mask of the answers is all zero; set another "
            "--data.template (one whose {% generation %} encloses the answers, or has none)",
            shown,
        )
        return
    plain = all(e.plain for e in sample.examples)
    kind = "whole texts" if plain else _template_kind(patient)
    yield ok(f"{kind}; {learned / max(1, total):.0%} of the tokens are learned", shown)
    if empty:
        yield warning(
            f"nothing is learned from {len(empty)} of {len(rows)} rows, first "
            f"{empty[0].example.id}: they have no answer"
        )
    if not plain:
        yield from _ends(patient)


def _template_kind(patient: Patient) -> str:
    chosen = patient.data.template
    own = patient.data.tokenizer.chat_template is not None
    name = {"auto": "the tokenizer's chat template" if own else "the plain template"}
    return name.get(chosen, f"template {chosen}")


def _ends(patient: Patient) -> Iterator[Finding]:
    """Whether the token that ends a learned answer is one at which generation stops."""
    tokenizer = patient.tokenizer
    named = patient.distiller.spec.path or tokenizer.name_or_path
    settings = loading.load_generation_config(named) if named else None
    stops = {tokenizer.eos_token_id}
    listed = getattr(settings, "eos_token_id", None)
    stops |= set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    ends = {_last(row) for row in patient.sample.kept if not row.example.plain} - {None}
    odd = [end for end in ends if end not in stops]
    if odd:
        where = ", ".join(_named(tokenizer, stop) for stop in sorted(stops))
        yield problem(
            f"answers are learned to end with {_named(tokenizer, odd[0])}, and generation stops "
            f"only at {where}, so it would never stop: set the tokenizer's eos_token, or "
            "eos_token_id in generation_config.json, to what ends an answer"
        )
    elif listed is not None and tokenizer.eos_token_id not in (
        listed if isinstance(listed, list) else [listed]
    ):
        yield warning(
            f"generation_config.json ends answers at {listed} and the tokenizer at "
            f"{tokenizer.eos_token_id}: both are taken here, other programs take one of them"
        )


def needs(patient: Patient) -> Iterator[Finding]:
    """What the loss asks and the teacher offers."""
    loss, teacher = patient.distiller.loss, patient.distiller.teacher
    name = type(loss).__name__
    if teacher is None and loss.needs:
        yield problem(
            f"{name} needs a teacher: write model.teacher, or use --model.loss=CrossEntropy"
        )
        return
    if teacher is None:
        yield ok(f"{name} learns from the words alone")
        return
    teacher.check(loss)
    asked = ", ".join(sorted(loss.needs - {Signal.TEXT})) or "nothing while training"
    yield ok(f"{name} asks the teacher for {asked}")


def _shortly(row: Row) -> str:
    text = ", ".join(f"{key}: {value}" for key, value in row.values_by_column.items())
    flat = " ".join(text.split())
    return f"{row.id}  {flat if len(flat) <= 90 else flat[:89] + '…'}"


def _named(tokenizer: Any, token: int | None) -> str:
    return "none" if token is None else f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})"


def _last(row: Encoded) -> int | None:
    """The last learned token."""
    places = np.flatnonzero(row.weights)
    return int(row.ids[places[-1]]) if len(places) else None


def _inside(row: Encoded, pad: int | None) -> bool:
    """Whether the padding id stands among the learned tokens, but for the last of each answer."""
    learned = row.weights != 0
    ends = learned & ~np.append(learned[1:], False)
    return bool(((row.ids == pad) & learned & ~ends).any())
