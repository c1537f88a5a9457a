"""An agent that calls tools until it has an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_lightning.elicit.asking import SAMPLING, Item
from kd_lightning.elicit.executors import Executor, ToolError
from kd_lightning.elicit.judge import Judge
from kd_lightning.elicit.template import Template
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Work
from kd_lightning.types import Sampling


class WithTools(Judge):
    """Let a generator answer with the help of tools; writes `messages`, `answer` and `tools`.

    Each turn is a call (`<call>{"name": ..., "arguments": {...}}</call>`, run by its executor, the
    result told as a `tool` turn) or the answer. What is wrong with a call
    is told too, so that it may be repaired.

    Source: Yao et al. 2022 (ReAct), arXiv 2210.03629; as data: Chen et al. 2023 (FireAct),
    arXiv 2310.05915.
    """

    def __init__(
        self,
        tools: list[Executor],
        template: str = "agent",
        sampling: Sampling = SAMPLING,
        calls: int = 4,
        **more: Any,
    ) -> None:
        """Store the settings.

        Args:
            tools: What may be called.
            template: Reads `prompt`, `tools` (their specifications) and `history`; writes `call` or
                `answer`.
            sampling: How turns are drawn.
            calls: Most calls; records that have no answer then fall.
            more: As for `Judge`.
        """
        super().__init__(template, sampling=sampling, **more)
        self.tools = tools
        self.calls = calls
        if not tools or calls < 1:
            raise KDError("WithTools: name at least one tool, and calls must be at least 1")

    def settings(self) -> dict[str, Any]:
        told = [{"class": type(tool).__name__, **vars(tool)} for tool in self.tools]
        return {**super().settings(), "tools": told}

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        template = Template(self.template)
        known = {tool.spec["name"]: tool for tool in self.tools}
        specs = [tool.spec for tool in self.tools]
        runs = {record.id: _Run(record) for record in records}
        live = list(runs.values())
        for turn in range(self.calls + 1):
            groups = [
                [
                    self.question(
                        template, run.record, str(turn), {"tools": specs, "history": run.seen}
                    )
                ]
                for run in live
            ]
            heard = self.put(groups, [run.record for run in live], work)
            going = []
            for run, said in zip(live, heard, strict=True):
                if said is None:
                    del runs[run.record.id]
                    continue
                run.by = said[0].by
                if "call" not in said[0].item:
                    run.answer = said[0].item["answer"]
                    continue
                run.add(said[0].item, _result(known, said[0].item["call"], work))
                going.append(run)
            live = going
            if not live:
                break
        for run in live:
            work.drop(run.record, f"no answer after {self.calls} calls")
            del runs[run.record.id]
        return [self._record(run, specs, work) for run in runs.values()]

    def _record(self, run: _Run, specs: list[dict[str, Any]], work: Work) -> Record:
        head = [{"role": "system", "content": s}] if (s := run.record.text("system")) else []
        asked = {"role": "user", "content": run.record.text("prompt")}
        last = {"role": "assistant", "content": run.answer}
        turns = [*head, asked, *run.turns, last]
        return run.record.changed(work.name, run.by, messages=turns, answer=run.answer, tools=specs)


@dataclass
class _Run:
    """One record's way to its answer."""

    record: Record
    turns: list[Item] = field(default_factory=list)
    answer: str = ""
    by: str = ""

    @property
    def seen(self) -> list[Item]:
        """The turns as the agent sees them: results are the user's, as any template has one."""
        roles = {"assistant": "assistant", "tool": "user"}
        return [{"role": roles[t["role"]], "content": t["content"]} for t in self.turns]

    def add(self, said: Item, result: str) -> None:
        """A call and its result."""
        told = f"{said['answer']}<call>{json.dumps(said['call'], ensure_ascii=False)}</call>"
        self.turns.append({"role": "assistant", "content": told})
        self.turns.append({"role": "tool", "content": result})


def _result(known: Mapping[str, Executor], call: Mapping[str, Any], work: Work) -> str:
    try:
        if call["name"] not in known:
            raise ToolError(f"there is no such tool: call one of {', '.join(known)}")
        return known[call["name"]].run(call["arguments"])
    except ToolError as error:
        work.count("wrong calls")
        return f"error: {error}"
