"""Expansion: new prompts out of given ones, one request each."""

from __future__ import annotations

from typing import Any

from kd_lightning.elicit.ask import Ask, Group, Keep


class Fuse(Ask):
    """Two prompts become one that asks for both.

    Source: Guo et al. 2023 (Instruction Fusion), arXiv 2312.15692.
    """

    def __init__(
        self, template: str = "fuse", arity: int = 2, group: Group = "drawn", **more: Any
    ) -> None:
        """Store the settings.

        Args:
            template: Reads `records`; writes `prompt`.
            arity: Prompts that become one.
            group: Which go together.
            more: As for `Ask`.
        """
        super().__init__(template, arity=arity, group=group, **more)


class Persona(Ask):
    """Prompts that a person of a given kind would write; the kind stands in `persona`.

    With `draw: {persona: <pool>}` it is drawn for each record.

    Source: Ge et al. 2024 (Persona Hub), arXiv 2406.20094.
    """

    def __init__(self, template: str = "persona", keep: Keep = "each", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `persona`; writes `prompt`.
            keep: How they are kept.
            more: As for `Ask`.
        """
        super().__init__(template, keep=keep, **more)


class ReflectInstruction(Ask):
    """A prompt with its answer, criticised and written anew: `prompt` and `answer`.

    Source: Li et al. 2023 (Reflection-Tuning), arXiv 2310.11716.
    """

    def __init__(self, template: str = "reflect_instruction", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt` and `answer`; writes both, and `critique`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)


class ReflectResponse(Ask):
    """The answer to a prompt, criticised and written anew: `answer`.

    Source: Li et al. 2023 (Reflection-Tuning), arXiv 2310.11716.
    """

    def __init__(self, template: str = "reflect_response", **more: Any) -> None:
        """Store the settings.

        Args:
            template: Reads `prompt` and `answer`; writes `answer` and `critique`.
            more: As for `Ask`.
        """
        super().__init__(template, **more)
