"""Graded answers, added up per skill and over ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist


class GradeBook:
    """Means of what the skills' graders said."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, skill: str, grades: Mapping[str, float]) -> None:
        """Enter the grades of one answer."""
        for name, value in grades.items():
            total, count = self._sums.get((skill, name), (0.0, 0))
            self._sums[skill, name] = (total + value, count + 1)

    def means(self, prefix: str) -> dict[str, float]:
        """`prefix/<grade>` over all skills and `prefix/<grade>/<skill>`; a collective call."""
        parts = [self._sums]
        if dist.is_available() and dist.is_initialized():
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self._sums)
        merged: dict[tuple[str, str], tuple[float, int]] = {}
        overall: dict[str, tuple[float, int]] = {}
        for part in parts:
            for (skill, name), (total, count) in part.items():
                a, b = merged.get((skill, name), (0.0, 0))
                merged[skill, name] = (a + total, b + count)
                a, b = overall.get(name, (0.0, 0))
                overall[name] = (a + total, b + count)
        table = {f"{prefix}/{name}": total / count for name, (total, count) in overall.items()}
        if len({skill for skill, _ in merged}) > 1:
            table |= {
                f"{prefix}/{n}/{s}": total / count for (s, n), (total, count) in merged.items()
            }
        return table
