"""What a run remembers of itself: command, versions, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from kd_lightning import __version__
from kd_lightning.errors import KDError
from kd_lightning.security.secrets import redacted, secret_option

MARKERS = ("config.yaml", "run.json")
"""A folder that holds one of these holds a run."""

_LIBRARIES = ("torch", "lightning", "transformers", "datasets", "peft", "wandb")


def refuse_existing_run(folder: Path, markers: Sequence[str] = MARKERS) -> None:
    """Refuse to start a new run in a folder that already holds one."""
    if (
        getattr(rank_zero_only, "rank", 0) != 0
    ):  # the other ranks start after the first one has written
        return
    found = [name for name in markers if (folder / name).exists()]
    if found:
        raise KDError(
            f"{folder} already holds a run ({found[0]}): write another folder "
            "(--trainer.default_root_dir=<folder>) or continue that run (--resume=auto)"
        )


def describe_run() -> dict[str, Any]:
    """Command, versions, platform and git commit: what is needed to run it again."""
    return {
        "command": command_line(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "kd_lightning": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        "platform": platform.platform(),
        "git": git_state(Path(__file__).parent) or git_state(Path.cwd()),
    }


def command_line(arguments: list[str]) -> str:
    """The command as it was typed, for a shell; values of secret options are left out."""
    program, *rest = arguments or ["python"]
    shown = ["python", program] if program.endswith(".py") else [Path(program).name]
    if program.endswith(".py") and Path(program).is_absolute():
        shown = ["python", Path(program).name]
    hide = False
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if hide:
            shown.append("***")
        elif equals and secret_option(name.lstrip("-")):
            shown.append(f"{name}=***")
        else:
            shown.append(redacted(argument))
        hide = not equals and argument.startswith("--") and secret_option(name[2:])
    return shlex.join(shown)


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that `folder` belongs to, and whether files differ from it."""

    def ask(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            )
        except (OSError, subprocess.TimeoutExpired):  # no git here: no commit to tell
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not ask("ls-files", "."):  # an installed package inside somebody else's checkout
        return None
    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
