"""Where a run's curves go: into its folder, and to dashboards."""

from __future__ import annotations

import configparser
import csv
import io
import json
import netrc
import os
import sys
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from kd_lightning.security.secrets import holds_secret


class InRunFolder:
    """A logger that writes into the run's folder unless it was given another one."""

    folder: str | None = None

    @property
    def save_dir(self) -> str:
        """The folder; the working directory as long as no run has placed it."""
        return self.folder or "."


def place_loggers(loggers: Iterable[Logger], folder: str | Path) -> None:
    """Tell the loggers that were not given a folder where the run's is."""
    for logger in loggers:
        if isinstance(logger, InRunFolder) and logger.folder is None:
            logger.folder = str(folder)


def go_on(loggers: Iterable[Logger], folder: str | Path, step: int) -> None:
    """A run continues in its folder: what it logged beyond its checkpoint will come again.

    Args:
        loggers: The run's loggers, placed.
        folder: The run's folder.
        step: Optimizer steps that the checkpoint has done.
    """
    logged = max((steps_in(path) for path in (Path(folder) / "metrics.csv",)), default=0)
    for logger in loggers:
        if isinstance(logger, MetricsFile):
            keep_until(logger.path, step)
        elif isinstance(logger, TensorBoardRun):
            logger.hide_after(step)
        elif isinstance(logger, WandbRun):
            logger.join_former(max(logged, step))
    answers = Path(folder) / "answers.jsonl"
    if answers.is_file():
        lines = answers.read_text(encoding="utf-8").splitlines(keepends=True)
        _replace(answers, [line for line in lines if _step_of(line) <= step])


def steps_in(path: Path) -> int:
    """The last step that a metrics.csv tells of."""
    return max((int(row["step"] or 0) for row in read_metrics(path)), default=0)


def keep_until(path: Path, step: int) -> None:
    """Leave out of a metrics.csv what is later than a step (or was cut while being written)."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    head, rows = rows[:1], rows[1:]
    width = len(head[0]) if head else 0
    whole = [r for r in rows if len(r) == width and r[0].isdigit() and int(r[0]) <= step]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([*head, *whole])
    _replace(path, [text.getvalue()])


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # cut while it was written: it comes again
        return sys.maxsize


def _replace(path: Path, lines: list[str]) -> None:
    aside = path.with_name(f".{path.name}")
    with aside.open("w", newline="", encoding="utf-8") as file:
        file.writelines(lines)
    aside.replace(path)


class MetricsFile(InRunFolder, Logger):
    """Every logged value in `<run>/metrics.csv`, one row a step, written at once.

    A column that comes later is added; a run that continues in the same folder appends.
    """

    def __init__(self, save_dir: str | None = None) -> None:
        """Store the settings.

        Args:
            save_dir: None: the run's folder.
        """
        super().__init__()
        self.folder = save_dir
        self._columns: list[str] | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.save_dir) / "metrics.csv"

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Nothing: the run's folder holds the whole configuration as config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {
            "step": "" if step is None else int(step),
            **{k: float(v) for k, v in metrics.items()},
        }
        if self._columns is None or not self.path.is_file():
            self._columns = self._start()
        new = [name for name in row if name not in self._columns]
        if new:
            rows = read_metrics(self.path)
            self._columns = [*self._columns, *new]
            with self.path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _start(self) -> list[str]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, as text."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TensorBoardRun(InRunFolder, TensorBoardLogger):
    """TensorBoard in `<run>/tensorboard`."""

    def __init__(self, save_dir: str | None = None) -> None:
        """Store the settings.

        Args:
            save_dir: None: the run's folder.
        """
        super().__init__(save_dir=save_dir or ".", name="tensorboard", version="")
        self.folder = save_dir

    def hide_after(self, step: int) -> None:
        """A continued run: what was logged after a step comes again, and once is enough."""
        super().__init__(
            save_dir=self.folder or ".", name="tensorboard", version="", purge_step=step + 1
        )

    @property
    def root_dir(self) -> str:
        return str(Path(self.save_dir) / "tensorboard")

    @property
    def log_dir(self) -> str:
        return self.root_dir


class WandbRun(InRunFolder, WandbLogger):
    """Weights & Biases: online where a key is configured and the service answers, else offline."""

    def __init__(
        self,
        project: str = "kd_lightning",
        save_dir: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
        entity: str | None = None,
        id: str | None = None,
    ) -> None:
        """A run on the dashboard.

        Args:
            project: where the run is listed.
            save_dir: folder that holds `wandb/`; None: the run's folder.
            name: the run's name on the dashboard.
            group: runs that belong together.
            tags: words to find the run by.
            mode: auto looks for a key and for the service when the run starts.
            entity: team or user.
            id: continue the run of this id.
        """
        super().__init__(name=name, project=project, id=id)
        self.folder = save_dir
        self.mode = mode
        self.known_until = -1
        self._run: dict[str, Any] = {
            "project": project,
            "name": name,
            "group": group,
            "tags": tags,
            "entity": entity,
            "id": id,
        }

    def join_former(self, until: int) -> None:
        """A continued run: the same one on the dashboard, which has the steps until here."""
        self.known_until = until
        former = list((Path(self.save_dir) / "wandb").glob("*run-*-*"))
        former.sort(key=lambda path: path.name.removeprefix("offline-"))
        if former and self._run["id"] is None:
            self._run["id"] = former[-1].name.rpartition("-")[2]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step is None or step > self.known_until:
            super().log_metrics(metrics, step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; the first access starts it."""
        if self._experiment is None:
            import wandb

            mode: Any = os.environ.get("WANDB_MODE") or self._mode()
            Path(self.save_dir).mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                **self._run,
                dir=self.save_dir,
                mode=mode,
                resume="allow",
                reinit="finish_previous",  # a second fit in this process is a second run
                settings=wandb.Settings(
                    silent=mode == "offline",
                    # W&B writes the command line down as it was typed
                    x_disable_meta=holds_secret(sys.argv),
                ),
            )
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            self._experiment = run
        return self._experiment

    def _mode(self) -> str:
        if self.mode != "auto":
            return self.mode
        reason = why_offline()
        if reason is None:
            return "online"
        rank_zero_info(
            f"Weights & Biases: {reason}, so this run is kept offline in "
            f"{Path(self.save_dir) / 'wandb'} (later: wandb sync <folder>)"
        )
        return "offline"


def why_offline(timeout: float = 2.0) -> str | None:
    """Why a run cannot be online; None where a key is configured and the service answers."""
    url = _service()
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(url):
        return "no key is configured (WANDB_API_KEY or wandb login)"
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:  # it answered
        return None
    except OSError:
        return f"{url} does not answer"
    return None


def _service() -> str:
    if url := os.environ.get("WANDB_BASE_URL"):
        return url
    folder = os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")
    settings = configparser.ConfigParser()
    settings.read(Path(folder).expanduser() / "settings")
    return settings.get("default", "base_url", fallback="https://api.wandb.ai")


def _in_netrc(url: str) -> bool:
    named = os.environ.get("NETRC")
    paths = [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]
    for path in (p.expanduser() for p in paths):
        if path.is_file():
            try:
                return netrc.netrc(path).authenticators(urlsplit(url).hostname or "") is not None
            except netrc.NetrcParseError as error:
                rank_zero_info(f"{path} cannot be read ({error}): Weights & Biases has no key")
    return False
