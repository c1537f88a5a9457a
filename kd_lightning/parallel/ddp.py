"""A whole copy of the student on each process."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from kd_lightning.parallel.meeting import meeting


class LocalDDP(DDPStrategy):
    """Lightning's DDP, whose processes meet on loopback where all of them are on one machine."""

    meeting: Any = None

    def setup_environment(self) -> None:
        """Meet, then the same as ever."""
        with meeting(self) as self.meeting:
            super().setup_environment()
