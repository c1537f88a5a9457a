"""Check of the servers: reachable, the right model, and log-probabilities that can be true.

A greedy answer's log-probabilities are held against themselves (`plausible`) and, where the server
also scores given texts, or the same model lies here, against these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd_lightning.distiller import Distiller
from kd_lightning.doctor.findings import Finding, ok, problem, warning
from kd_lightning.doctor.patient import Patient, refusal
from kd_lightning.doctor.plausible import ROUNDING, at_odds
from kd_lightning.errors import KDError
from kd_lightning.models.loading import resolve
from kd_lightning.rewards.base import Reward
from kd_lightning.rollouts.base import Rollout
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers.generator import Generator, Kind, TokenLogprobs
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.remote.hearing import Heard, beside, hear
from kd_lightning.teachers.server import ServerTeacher
from kd_lightning.types import Message, Prompt, Signal

SECONDS = 8.0
"""The longest that a server is waited for."""

ALIKE = 0.25
"""Nats a token by which a server's differ from the same model's here: 4-bit weights, on average."""

SMALL = 2**31
"""Bytes of weights that are read to compare with them."""


def servers(part: Any, seen: set[int] | None = None) -> Iterator[ServerTeacher]:
    """Those among a run's teacher, rollouts and rewards, and among what these are made of.

    A server that draws the student's answers is asked like a teacher.
    """
    seen = set() if seen is None else seen
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, ServerTeacher):
        yield part
    elif isinstance(part, VLLMServer):
        yield _Drawing(
            part.url, part.model, part.key_variable, api="completions",
            logprobs="auto" if part.logprobs == "engine" else False, top_logprobs=1,
            allow_plain_http=part.allow_plain_http, retries=part.retries,
            connect_seconds=part.connect_seconds, exchange_seconds=part.exchange_seconds,
        )  # fmt: skip
    elif isinstance(part, (list, tuple)):
        for inner in part:
            yield from servers(inner, seen)
    elif isinstance(part, dict):
        yield from servers(list(part.values()), seen)
    elif isinstance(part, (Generator, Reward, Rollout)):
        yield from servers(list(vars(part).values()), seen)


class _Drawing(ServerTeacher):
    """A server that draws the student's answers, as a teacher that can be asked."""


def served(patient: Patient) -> Iterator[Finding]:
    """Each server answers one row's question."""
    run = patient.distiller
    found = list(servers([run.teacher, run.answering.rollout, _reward(run)]))
    if not found:
        yield ok("none is asked")
    for server in found:
        try:
            heard = hear(server, _question(patient), SECONDS)
        except KDError as error:
            yield problem(refusal(error))
            continue
        yield from _judged(server, heard, _needed(run, server))


def _judged(server: ServerTeacher, heard: Heard, needed: str) -> Iterator[Finding]:
    who = f"{server.url} ({server.model})"
    if heard.models and server.model not in heard.models:
        yield warning(
            f"{server.url} answers as {server.model!r}, which is not among its models "
            f"({', '.join(heard.models)}): write one of these as model"
        )
    if not heard.answer.text:
        yield warning(f"{who} says nothing to a question of the data: check model and template")
        return
    if not heard.pieces:
        wanted = "logprobs: true is stated" if server.logprobs is True else needed
        if wanted:
            yield problem(
                f"{who} tells no log-probabilities, and {wanted}: take a server that tells them "
                "(vLLM, SGLang, llama.cpp), another api, or what needs none"
            )
        else:
            yield ok(f"{who} answers, without log-probabilities, which nothing here asks for")
        return
    faults = [*at_odds(heard.pieces, heard.blanks), *_not_as_given(heard)]
    if faults:
        yield problem(f"{who}: {faults[0]}")
        return
    told = f"{who} answers"
    if any(p.top for p in heard.pieces):
        told += f", the log-probabilities of {len(heard.pieces)} tokens can be true"
    if heard.scored is not None:
        told += ", and are what it says of the same text when it is given"
    if heard.top < server.top_logprobs and needed:
        yield warning(
            f"{server.url} tells at most {heard.top} likeliest tokens: write top_logprobs: "
            f"{heard.top}"
        )
    if heard.unscored:
        yield warning(f"{who} gives no log-probabilities of given texts: {heard.unscored}")
    yield _as_here(server, heard, told)


def _as_here(server: ServerTeacher, heard: Heard, told: str) -> Finding:
    """The same, held against the model where it lies here too."""
    folder = _same_model(server)
    if folder is None:
        return ok(told)
    try:
        apart = _mean(beside(heard.pieces, _here(folder, server, heard)))
    except KDError as error:
        return warning(f"{told}; the model in {folder} cannot be compared: {refusal(error)}")
    if apart is None:
        return warning(f"{told}; the model in {folder} cuts the same text into other tokens")
    if apart > ALIKE:
        return problem(
            f"{server.url} does not serve the model in {folder}: the log-probabilities of one "
            f"answer differ by {apart:.2f} nats a token; check what it serves, its template and "
            "its sampling settings (extra)"
        )
    return ok(f"{told}; the model in {folder} says the same ({apart:.1g} nats a token apart)")


def _not_as_given(heard: Heard) -> Iterator[str]:
    apart = None if heard.scored is None else beside(heard.pieces, heard.scored)
    mean = _mean(apart)
    if mean is not None and mean > ROUNDING:
        yield (
            f"the log-probabilities of its answer differ by {mean:.2f} nats a token from what it "
            "says of the same text when it is given: one of the two is of other places, another "
            "temperature or another template (template, extra)"
        )


def _mean(apart: list[float] | None) -> float | None:
    return sum(map(abs, apart)) / len(apart) if apart else None


def _needed(run: Distiller, server: ServerTeacher) -> str:
    """Who needs its log-probabilities; '' where nobody does."""
    if isinstance(server, _Drawing) and server.logprobs == "auto":
        return "answers drawn there need them (or the engine's logprobs: student)"
    if server is run.teacher and Signal.LOGPROB in run.loss.needs:
        return f"{type(run.loss).__name__} needs them"
    for reward in _rewards(_reward(run)):
        own: list[Any] = list(servers(reward)) or [run.teacher]
        kinds = {kind for wanted in reward.needs.values() for kind in wanted}
        if server in own and kinds & {Kind.SCORE, Kind.CHOICES}:
            return f"{type(reward).__name__} needs them"
    return ""


def _reward(run: Distiller) -> Reward | None:
    return None if run.answering.judging is None else run.answering.judging.reward


def _rewards(reward: Reward | None) -> Iterator[Reward]:
    if reward is not None:
        yield reward
        for part in reward.parts:
            yield from _rewards(part)


def _question(patient: Patient) -> Prompt:
    """A training row's, where rows can be read."""
    try:
        examples = patient.sample.examples
    except KDError:
        examples = []
    for example in examples:
        if example.plain:
            return Prompt.text(" ".join(example.messages[0].content.split()[:8]))
        if example.prompt:
            return Prompt(example.prompt)
    return Prompt((Message("user", "Count: one, two, three,"),))


def _same_model(server: ServerTeacher) -> str | None:
    """The folder of the served model, where its name says that it lies here and is small."""
    if server.tokenizer_path is None or server.tokenizer_path != server.model:
        return None
    try:
        folder = Path(resolve(server.model))
    except KDError:
        return None
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return server.model if 0 < size <= SMALL else None


def _here(folder: str, server: ServerTeacher, heard: Heard) -> TokenLogprobs:
    """The answer's log-probabilities by the model in a folder."""
    local = LocalTeacher(
        folder, dtype="float32", template=server.template,
        template_arguments=server.template_arguments,
    )  # fmt: skip
    try:
        return local.score([heard.prompt], [heard.answer.text])[0]
    finally:
        local.close()
