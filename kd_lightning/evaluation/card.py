"""The model card of an exported student."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from kd_lightning.data.mixture import Mixture
from kd_lightning.evaluation.measure import Measured
from kd_lightning.evaluation.report import comparison_markdown
from kd_lightning.teachers.rights import licence_of
from kd_lightning.tracking import describe_run
from kd_lightning.types import Example

if TYPE_CHECKING:
    from kd_lightning.data.base import KDDataModule
    from kd_lightning.distiller import Distiller

UNKNOWN = "not stated: ask its author before you share this model"


@dataclass(frozen=True)
class CardFacts:
    """What a model card tells besides what the Distiller itself knows."""

    licences: dict[str, str] = field(default_factory=dict)
    """Licences by `teacher`, `student`, `data` where their own files do not state them."""
    results: Sequence[Measured] = ()
    """Teacher, student before and student after, as measured."""
    split: str = "validation"
    """The split of the results."""
    weights: str = ""
    """Which weights of the run these are."""
    command: str | None = None
    """The command that trained it; None: this process's."""

    @classmethod
    def of_run(cls, folder: Path, **more: Any) -> CardFacts:
        """What the run in a folder recorded of itself: its command and its results."""
        record, results = folder / "run.json", folder / "comparison.pt"
        if record.is_file():
            more["command"] = json.loads(record.read_text(encoding="utf-8"))["starts"][-1][
                "command"
            ]
        if results.is_file():
            kept = torch.load(results, map_location="cpu", weights_only=True)
            more["split"] = kept["split"]
            more["results"] = [Measured.from_state(state) for state in kept["columns"]]
        return cls(**more)


def make_card(
    distiller: Distiller, data: KDDataModule | None = None, facts: CardFacts | None = None
) -> ModelCard:
    """Teacher, data, licences, method, results and command, with the hub's metadata."""
    facts = facts or CardFacts()
    run = describe_run()
    teacher = getattr(distiller.teacher, "path", None) or getattr(distiller.teacher, "name", None)
    origin = distiller.spec.path
    examples = _examples(data)
    sources = sources_of(data)
    licences = {
        "teacher": facts.licences.get("teacher")
        or getattr(distiller.teacher, "licence", None)
        or (licence_of(teacher) if teacher else None),
        "student": facts.licences.get("student") or (licence_of(origin) if origin else None),
        "data": facts.licences.get("data") or licence_in(examples),
    }
    used = {"teacher": teacher, "student": origin, "data": ", ".join(sources) or None}
    metadata = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=[n for n in (origin, teacher) if n and _on_hub(n)] or None,
        datasets=[s for s in sources if _on_hub(s)] or None,
        license=_overall([licences[name] for name, what in used.items() if what]),
        tags=["knowledge-distillation", "kd_lightning", type(distiller.loss).__name__],
    )
    student = origin or f"a new {(distiller.spec.config or {}).get('model_type', '')} model"
    lines = [
        "---",
        metadata.to_yaml(),
        "---",
        "",
        "# A distilled student",
        "",
        f"A language model of {distiller.student.parameter_count:,} parameters"
        + (f", distilled from `{teacher}`." if teacher else ", trained without a teacher."),
        "",
        "## How it was made",
        "",
        f"- **Teacher**: {f'`{teacher}`' if teacher else 'none'}",
        f"- **Student**: {student}{_cut(distiller)}",
        f"- **Method**: `{described(distiller.loss)}`",
        f"- **Data**: {_data_line(data, sources)}",
        *([f"- **Weights**: {facts.weights}"] if facts.weights else []),
        "",
        "Command:",
        "",
        "```sh",
        facts.command or run["command"],
        "```",
        "",
        "## Licences",
        "",
        *[
            f"- {name} (`{what}`): {licences[name] or UNKNOWN}"
            for name, what in used.items()
            if what
        ],
        *_override(distiller),
        "",
    ]
    if facts.results:
        lines += [
            "## Results",
            "",
            f"On the {facts.split} split "
            f"({int(facts.results[0].sums[:, 0].sum()):,} answer tokens); arrows: what is better.",
            "",
            comparison_markdown(facts.results),
            "",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    commit = f"; commit {run['git']['commit']}" if run["git"] else ""
    if run["git"] and run["git"]["dirty"]:
        commit += " with changes"
    lines += ["## Versions", "", versions + commit, ""]
    return ModelCard("\n".join(lines))


def _override(distiller: Distiller) -> list[str]:
    """Why it was trained on what the terms forbid, where that was stated."""
    told = (
        distiller.answering.rights().get("override") if distiller.answering.terms_override else None
    )
    return [f"- terms of {', '.join(told['of'])}: {told['statement']}"] if told else []


def described(thing: Any) -> str:
    """A mechanism with the arguments that its constructor kept: `ForwardKL(temperature=2)`."""
    kept = []
    for name, parameter in inspect.signature(type(thing).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        value = getattr(thing, name, inspect.Parameter.empty)
        if value is inspect.Parameter.empty:
            continue
        kept.append(f"{name}={_shown(value)}")
    return f"{type(thing).__name__}({', '.join(kept)})"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if hasattr(value, "items"):  # dict, ModuleDict
        return "{" + ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    return described(value)


def _cut(distiller: Distiller) -> str:
    spec = distiller.spec
    parts = []
    if spec.layers is not None:
        kept = (
            f"layers {spec.layers}"
            if isinstance(spec.layers, list)
            else (f"{spec.layers} layers ({spec.keep})")
        )
        parts.append(f"cut to {kept}")
    if spec.lora is not None:
        parts.append(f"LoRA of rank {spec.lora.rank}, merged")
    return f" ({'; '.join(parts)})" if parts else ""


def _examples(data: KDDataModule | None) -> list[Example]:
    if data is None:
        return []
    for split in ("train", "validation", "test"):
        if split in data.summary:
            return data.examples(split)
    return []


def sources_of(data: KDDataModule | None) -> list[str]:
    """Files, folders or hub names, as they were written."""
    if data is None:
        return []
    if isinstance(data, Mixture):
        return list(dict.fromkeys(s for p in data.parts.values() for s in sources_of(p.data)))
    return list(dict.fromkeys(data.splits.paths.values())) or [type(data).__name__]


def _data_line(data: KDDataModule | None, sources: list[str]) -> str:
    if data is None:
        return "not recorded"
    counts = data.summary.get("train")
    told = f", {counts.rows:,} rows, {counts.tokens:,} tokens" if counts else ""
    return f"{type(data).__name__} on {', '.join(f'`{s}`' for s in sources)}{told}"


def licence_in(examples: Sequence[Example]) -> str | None:
    """Every licence that the examples name, or None where none does."""
    names = {str(e.meta[k]) for e in examples for k in ("licence", "license") if e.meta.get(k)}
    return ", ".join(sorted(names)) or None


def _overall(stated: Sequence[str | None]) -> str:
    """The one licence of everything used, else what the hub calls an open question."""
    if None in stated or not stated:
        return "unknown"
    return str(stated[0]) if len(set(stated)) == 1 else "other"


def _on_hub(name: str) -> bool:
    """Whether a name has the form `owner/model` and is no folder here."""
    parts = name.split("/")
    return (
        len(parts) == 2
        and all(parts)
        and parts[0] not in (".", "..", "~")
        and (not Path(name).exists())
    )
