"""A question with its answer as turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.curate.texts import at_least, prompt_of
from kd_lightning.errors import KDError
from kd_lightning.knowledge.records import Record
from kd_lightning.knowledge.step import Step, Work


class Turns(Step):
    """Write system prompt, prompt and answer as `messages`, as a student shall be taught them.

    A record that holds `messages` before the answer goes on with them.
    """

    def __init__(self, answer: str = "answer", keep: bool = True, into: str = "messages") -> None:
        """Store the settings.

        Args:
            answer: Field with the last turn.
            keep: Whether system, prompt and answer stay beside the turns.
            into: Field of the turns.
        """
        at_least("the length of into", len(into), 1)
        if answer == into:
            raise KDError(f"answer and into are both {into}: the turns need a field of their own")
        self.answer = answer
        self.keep = keep
        self.into = into

    def run(self, records: Sequence[Record], work: Work) -> list[Record]:
        made = []
        for record in records:
            prompt, answer = prompt_of(record), record.text(self.answer)
            if prompt is None or not answer:
                work.drop(record, "no prompt" if prompt is None else f"no {self.answer}")
                continue
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            gone = {} if self.keep else dict.fromkeys(("system", "prompt", self.answer))
            values = {**gone, self.into: [*turns, {"role": "assistant", "content": answer}]}
            made.append(record.changed(work.name, **values))
        return made
