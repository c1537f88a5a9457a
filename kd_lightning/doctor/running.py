"""Checks of what runs: models, attention, teacher, a step, a checkpoint."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from kd_lightning.doctor.findings import Finding, MissingError, ok, problem, warning
from kd_lightning.doctor.machine import shown
from kd_lightning.doctor.paper import student_config
from kd_lightning.doctor.patient import Patient
from kd_lightning.doctor.place import beside
from kd_lightning.doctor.trial import Trial, attempt, silence
from kd_lightning.errors import KDError
from kd_lightning.models import loading, vocabulary
from kd_lightning.models.attention import choose
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.types import IGNORE, Batch, ModelOutput, Signal


def attention(patient: Patient) -> Iterator[Finding]:
    """Which implementation computes attention here."""
    spec = patient.distiller.spec
    device = patient.device
    half = "16" in str(patient.trainer.precision)
    config = student_config(spec, patient.known_tokenizer)
    dtype = torch.bfloat16 if half else loading.weights_dtype(config, spec.dtype)
    chosen = choose(spec.attention, spec.packing, config, device, dtype, trained=True)
    told = f"student {chosen}"
    teacher = patient.distiller.teacher
    if isinstance(teacher, LocalTeacher):
        config = loading.load_config(teacher.path, teacher.revision)
        dtype = loading.weights_dtype(config, teacher.dtype)
        other = choose(teacher.attention, teacher.packing, config, device, dtype, trained=False)
        same = str(other) == str(chosen)
        told = f"student and teacher {other}" if same else f"{told}; teacher {other}"
    where = "" if patient.machine.here else " here; on the GPU it is chosen anew"
    yield ok(told + where)


def student(patient: Patient) -> Iterator[Finding]:
    """It can be built, and something of it is trained."""
    rows = student_config(patient.distiller.spec, patient.tokenizer).get_text_config().vocab_size
    known = vocabulary.size(patient.tokenizer)
    if known > rows:
        raise KDError(
            f"the tokenizer knows {known} ids and the model has {rows} rows: use the model's own "
            "tokenizer, or leave model.student.config.vocab_size out"
        )
    with silence():
        built = patient.student
    trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    if not trained and not any(p.requires_grad for p in patient.distiller.loss.parameters()):
        yield problem(
            "no weight of the student is trained, all are frozen: write model.student.lora=null, "
            "or LoRA targets that the model has"
        )
        return
    odd = [name for name, p in built.named_parameters() if not bool(p.isfinite().all())]
    if odd:
        yield problem(
            f"{len(odd)} of the student's weights are not finite, first {odd[0]}: write another "
            "--model.student.path"
        )
        return
    share = trained / built.parameter_count
    kind = type(built.transformer).__name__
    told = "all trained" if share == 1 else f"{trained:,} trained ({share:.1%})"
    yield ok(f"{kind} of {built.parameter_count:,} parameters, {told}")


def teacher(patient: Patient) -> Iterator[Finding]:
    """It answers, with log-probabilities that know something of the gold answers."""
    if patient.distiller.teacher is None:
        yield ok("none: learns from the words alone")
        return
    if not patient.offers_logits and Signal.TOPK not in patient.distiller.teacher.offers:
        yield ok("gives text; it is not asked while training")
        return
    with silence():
        found = patient.teacher
    batch = patient.batch
    found.check_data(patient.data)
    output = found.forward(batch, patient.distiller.loss.needs | {Signal.LOGITS})
    taught, vocab = negative_log_probabilities(output, batch)
    count = int(taught.numel())
    broken = int((~taught.isfinite()).sum())
    if broken:
        yield problem(
            f"{broken} of {count} log-probabilities of the teacher are not finite: its weights are "
            "damaged, or its data type overflows (--model.teacher.dtype=float32)"
        )
        return
    uniform = math.log(vocab)
    loss = float(taught.mean())
    told = f"perplexity {_perplexity(loss)} on {count:,} gold tokens"
    try:
        with torch.no_grad():
            own = float(negative_log_probabilities(patient.student(batch), batch)[0].mean())
        told += f", student {_perplexity(own)}"
    except MissingError:
        own = math.inf
    told += f" (all ids alike: {vocab:,})"
    if loss >= 0.98 * uniform:
        yield warning(
            f"{told}: the teacher knows nothing of these answers, as if its weights were random: "
            "check --model.teacher.path, its template and the language of the data"
        )
    elif loss > own:
        yield warning(
            f"{told}: the teacher predicts the answers worse than the student does already: "
            "check --model.teacher.path, or train on the words alone (--model.loss=CrossEntropy)"
        )
    else:
        yield ok(told)


def step(patient: Patient) -> Iterator[Finding]:
    """Forward and backward: the loss is finite, gradients arrive, the student changes."""
    trial = tried(patient)
    before, after = trial.losses
    told = f"loss {before:.3f}, after one step {after:.3f} on the same {trial.rows} rows"
    if not trial.changed:
        yield problem(
            f"{told}: no weight changed in two steps: raise the learning rate "
            "(model.optimizer.init_args.lr), or keep the student in float32"
        )
        return
    if after > before + max(1.0, before):
        yield warning(f"{told}: it rose, so the learning rate is too high or needs a warm-up")
    else:
        moved = f"{trial.changed} of {trial.trained} weights moved"
        yield ok(f"{told}; {moved}; {trial.seconds:.2f} s a step here")
    if trial.unreached:
        yield warning(
            f"no gradient reaches {len(trial.unreached)} of {trial.trained} trained weights, first "
            f"{trial.unreached[0]}: they will stay as they are"
        )


def checkpoint(patient: Patient) -> Iterator[Finding]:
    """What was saved after the first step leads to the same second step."""
    trial = tried(patient)
    told = f"{shown(trial.checkpoint)} written and read back"
    if trial.equal:
        yield ok(f"{told}, the next step is the same, bit for bit")
    elif trial.furthest < 1e-3 and patient.device.type != "cpu":
        yield ok(f"{told}, the next step is the same but for {trial.furthest:.1g} (GPU arithmetic)")
    else:
        yield problem(
            f"{told}, and the next step leads elsewhere (by up to {trial.furthest:.2g}): a part of "
            "the run keeps something that its checkpoint does not hold"
        )


def tried(patient: Patient) -> Trial:
    """The two steps, made once, in a folder that goes away."""

    def make() -> Trial:
        patient.batch, patient.student  # noqa: B018 (what is missing is said before)
        with beside(patient.folder) as near, tempfile.TemporaryDirectory(dir=near) as folder:
            return attempt(patient, Path(folder))

    return patient.once("trial step", make)


def negative_log_probabilities(output: ModelOutput, batch: Batch) -> tuple[Tensor, int]:
    """-log p(target) of the learned tokens `[N]`, and over how many ids."""
    if output.sparse is not None:
        return -output.sparse.label.float(), output.sparse.vocab
    learned = (batch.targets != IGNORE) & best(batch)[:, None]
    rows = learned.flatten().nonzero().squeeze(-1)
    targets = batch.targets.flatten()[rows]
    hidden = output.hidden.flatten(0, 1)[rows]
    vocab = output.head.vocab
    found = []
    with torch.no_grad():
        for states, ids in zip(torch.split(hidden, 256), torch.split(targets, 256), strict=True):
            logits = output.head(states)[:, :vocab].float()
            found.append(logits.logsumexp(-1) - logits.gather(-1, ids[:, None]).squeeze(-1))
    return torch.cat(found) if found else hidden.new_zeros(0), vocab


def best(batch: Batch) -> Tensor:
    """Rows that are right, `[B]` bool: of judged answers, those of a group with the most reward."""
    if batch.reward is None:
        return torch.ones(len(batch), dtype=torch.bool, device=batch.targets.device)
    groups = range(len(batch)) if batch.group is None else batch.group.tolist()
    rewards = [-math.inf if r != r else r for r in batch.reward.tolist()]
    most: dict[int, float] = {}
    for group, reward in zip(groups, rewards, strict=True):
        most[group] = max(reward, most.get(group, -math.inf))
    pairs = zip(groups, rewards, strict=True)
    found = [reward == most[group] and reward > -math.inf for group, reward in pairs]
    return torch.tensor(found, device=batch.targets.device)


def _perplexity(loss: float) -> str:
    value = math.exp(min(loss, 50.0))
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
