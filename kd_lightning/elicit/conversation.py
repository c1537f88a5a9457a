"""Conversations: agents that speak in turn, or one generator that writes both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kd_lightning.elicit.ask import Ask
from kd_lightning.elicit.asking import SAMPLING, Item, Manner, Question, put
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work
from kd_lightning.teachers.generator import Kind
from kd_lightning.types import Sampling


@dataclass(frozen=True)
class Agent:
    """One who speaks."""

    template: str
    """Reads `history` (turns, the agent's own as the assistant's), `turn` and the record's values;
    writes `answer`."""
    role: Literal["user", "assistant"]
    """Whose turns they are in `messages`."""
    generator: str = "teacher"
    """Name of the generator that speaks for it."""
    sampling: Sampling = SAMPLING
    """How its turns are drawn."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Further names for the template."""


class Converse(Step):
    """Let agents speak in turn about each record; their turns become `messages`.

    All conversations go on together, turn by turn. Each agent sees its own turns as the assistant's
    and the others' as the user's. Turns behind the last one of the assistant are left out.

    Source: Ding et al. 2023 (UltraChat), arXiv 2305.14233; Li et al. 2023 (CAMEL),
    arXiv 2303.17760.
    """

    def __init__(
        self,
        agents: dict[str, Agent] | None = None,
        turns: int = 6,
        least: int = 2,
        policy: Literal["alternate", "drawn"] = "alternate",
        opens: str = "",
        stop: list[str] | None = None,
        attempts: int = 3,
        allow_cut: bool = False,
    ) -> None:
        """Store the settings.

        Args:
            agents: Name to who speaks, in the order of their turns. Not given: a simulated user and
                an assistant, both the teacher's.
            turns: Most turns, of all together.
            least: Fewest turns; shorter conversations fall.
            policy: `alternate`, or `drawn` among those who did not speak last.
            opens: A value that is the first agent's first turn; '': it speaks it itself.
            stop: Texts by which an agent ends the conversation; what stands before them counts.
            attempts: How often a turn is asked for.
            allow_cut: Whether a turn that was cut at the length limit counts.
        """
        self.agents = agents or {
            "user": Agent("user_simulator", "user"),
            "assistant": Agent("assistant", "assistant"),
        }
        self.turns = turns
        self.least = least
        self.policy = policy
        self.opens = opens
        self.stop = ["[END]"] if stop is None else stop
        self.attempts = attempts
        self.allow_cut = allow_cut
        if len(self.agents) < 2 or "assistant" not in {a.role for a in self.agents.values()}:
            raise KDError("Converse needs two agents or more, one of them with role: assistant")
        if not 1 <= least <= turns:
            raise KDError("Converse: 1 <= least <= turns")

    def needs(self) -> Mapping[str, frozenset[Kind]]:
        return {agent.generator: frozenset({Kind.GENERATE}) for agent in self.agents.values()}

    def settings(self) -> dict[str, Any]:
        read = [Template(agent.template).settings() for agent in self.agents.values()]
        return {**super().settings(), "templates": read}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        talks = [_Talk(record) for record in records]
        templates = {name: Template(agent.template) for name, agent in self.agents.items()}
        for turn in range(self.turns):
            speaking: dict[str, list[_Talk]] = {name: [] for name in self.agents}
            for talk in talks:
                if not talk.ended:
                    speaking[self._speaker(talk, turn, work)].append(talk)
            for name, theirs in speaking.items():
                if turn == 0 and self.opens:
                    for talk in theirs:
                        self._open(talk, name)
                elif theirs:
                    self._speak(name, templates[name], theirs, turn, work)
        return [made for talk in talks for made in self._record(talk, work)]

    def _speaker(self, talk: _Talk, turn: int, work: Work) -> str:
        names = list(self.agents)
        if self.policy == "alternate" or turn == 0:
            return names[turn % len(names)]
        others = [name for name in names if name != talk.said[-1]["name"]]
        return work.rng(talk.record.id, "speaker", turn).choice(others)

    def _open(self, talk: _Talk, name: str) -> None:
        text = talk.record.text(self.opens)
        if not text:
            raise KDError(
                f"Converse: record {talk.record.id} has no {self.opens} to open with: set opens to "
                "a value that it has, or to ''"
            )
        talk.said.append({"role": self.agents[name].role, "content": text, "name": name})

    def _speak(
        self, name: str, template: Template, talks: Sequence[_Talk], turn: int, work: Work
    ) -> None:
        agent = self.agents[name]
        questions = []
        for talk in talks:
            told = {
                "history": [
                    {
                        "role": "assistant" if said["name"] == name else "user",
                        "content": said["content"],
                    }
                    for said in talk.said
                ],
                "turn": turn + 1,
                "turns": self.turns,
            }
            values = {**agent.given, **talk.record.values, **told}
            prompt = template.prompt(values, talk.record.id)
            key = f"{talk.record.id}/{turn}"
            questions.append(Question(key, prompt, template.parser.parse, stop=template.stop))
        manner = Manner(agent.sampling, self.attempts, self.allow_cut)
        heard = put(work, agent.generator, questions, manner)
        for talk, said in zip(talks, heard, strict=True):
            if not said.answers:
                talk.ended, talk.failure = True, said.failure
                continue
            text = str(said.item["answer"])
            marks = [at for mark in self.stop if (at := text.find(mark)) >= 0]
            talk.ended = bool(marks)
            text = text[: min(marks, default=len(text))].strip()
            talk.by = said.by
            if text:
                talk.said.append({"role": agent.role, "content": text, "name": name})

    def _record(self, talk: _Talk, work: Work) -> list[Record]:
        last = max((i for i, t in enumerate(talk.said) if t["role"] == "assistant"), default=-1)
        turns = talk.said[: last + 1]
        if talk.failure or len(turns) < self.least:
            work.drop(talk.record, talk.failure or f"fewer than {self.least} turns")
            return []
        return [talk.record.changed(work.name, talk.by, messages=turns)]


@dataclass
class _Talk:
    """One conversation as it stands."""

    record: Record
    said: list[Item] = field(default_factory=list)
    ended: bool = False
    failure: str = ""
    by: str = ""


class Debate(Converse):
    """Two sides argue about the `prompt`; a step with the template `conclude` may sum it up.

    Source: Li et al. 2024 (DEBATunE), arXiv 2402.10614.
    """

    def __init__(
        self, agents: dict[str, Agent] | None = None, turns: int = 4, least: int = 2, **more: Any
    ) -> None:
        """Store the settings.

        Args:
            agents: Name to who speaks. Not given: one for and one against, both the teacher's.
            turns: Most turns, of both together.
            least: Fewest turns; shorter debates fall.
            more: As for `Converse`.
        """
        sides = agents or {
            "for": Agent("debate", "user", given={"side": "for"}),
            "against": Agent("debate", "assistant", given={"side": "against"}),
        }
        super().__init__(sides, turns=turns, least=least, **more)


class SelfChat(Ask):
    """A whole conversation in one answer: one generator writes both sides of `messages`.

    Source: Xu et al. 2023 (Baize), arXiv 2304.01196.
    """

    def __init__(self, template: str = "self_chat", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt`, what it is about; writes `messages`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)
