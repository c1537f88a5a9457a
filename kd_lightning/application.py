"""Lightning's command line, joined to the library's parts."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, set_parsing_settings  # type: ignore[attr-defined]
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from kd_lightning.data.base import KDDataModule
from kd_lightning.distiller import Distiller
from kd_lightning.doctor.machine import in_this_process
from kd_lightning.errors import KDError
from kd_lightning.loggers import go_on, place_loggers
from kd_lightning.mistakes import nearest, one_sentence
from kd_lightning.reliability.keeper import Keeper
from kd_lightning.reliability.lock import RunLock
from kd_lightning.reliability.resume import Start, find
from kd_lightning.security.secrets import masked
from kd_lightning.tracking import refuse_existing_run
from kd_lightning.trainer import KDTrainer

PLUGINS = ("callbacks",)
"""Modules outside the library whose class names a configuration may use, where they exist."""

RUN_VARIABLE = "KD_RUN_FOLDER"
"""Carries a generated run folder to the processes that a launcher starts."""


OF_THE_CALL = ("ckpt_path", "weights_only", "resume")
"""Arguments of `fit` itself: not of the run, so that its record serves every command."""


IN_ONE_PROCESS = ("cache", "evaluate", "export")
"""Commands that never start processes, whatever the recorded configuration trained with."""


class KDParser(LightningArgumentParser):
    """A parser whose errors are one sentence and name what was probably meant."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault(
            "usage", "kd <command> [-c FILE.yaml ...] [--key.of.the.config=value ...]"
        )
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    @classmethod
    def of(cls, owner: type, command: str) -> KDParser:
        """Reads what a class of ours is made of, for a command that trains nothing itself."""
        set_parsing_settings(
            docstring_parse_attribute_docstrings=True, omegaconf_absolute_to_relative_paths=True
        )
        usage = f"{command} [-c FILE.yaml ...] [--key.of.the.config=value ...]"
        made = cls(prog=command, parser_mode="omegaconf+", usage=usage, description="")
        made.add_argument("-c", "--config", action=ActionConfigFile, help="a configuration file")
        made.add_class_arguments(owner, skip={"said"})
        return made

    def made(self, config: Any) -> dict[str, Any]:
        """The arguments of that class, instantiated."""
        made = vars(self.instantiate_classes(config))
        return {k: v for k, v in made.items() if k != "config"}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise KDError(one_sentence(message)) from ex


class RecordConfig(SaveConfigCallback):
    """The whole resolved configuration, in the run's folder and in every logger."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        text = recorded(self.parser, self.config)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        keep_former(folder / "config.yaml", text)
        (folder / "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


def recorded(parser: LightningArgumentParser, config: Any) -> str:
    """The configuration as a run remembers it."""
    kept = config.clone()
    for key in OF_THE_CALL:
        kept.pop(key, None)
    return masked(parser.dump(kept, skip_none=False, skip_validation=True))


def keep_former(path: Path, text: str) -> None:
    """Number the configuration that a continued run had until now, where it differs."""
    if path.is_file() and path.read_text() != text:
        number = len(list(path.parent.glob("config.*.yaml"))) + 1
        path.rename(path.with_name(f"config.{number}.yaml"))


class KDCLI(LightningCLI):
    """LightningCLI for a Distiller and a KDDataModule."""

    trainer: KDTrainer
    wanted: str | None = None
    closing = ExitStack()
    """What is given free when the command ends."""
    start = Start()
    planned: Any = None
    """What the configuration says of the machine, where the doctor tries things on another."""

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:  # type: ignore[override]
        """Lightning's four and ours; only the wanted one, since each parser takes a second."""
        known = {
            **LightningCLI.subcommands(),
            "cache": {"model", "datamodule"},
            "doctor": {"model", "datamodule"},
            "evaluate": {"model", "datamodule"},
            "export": {"model", "datamodule"},
        }
        return {k: v for k, v in known.items() if cls.wanted in (k, None)}

    def before_instantiate_classes(self) -> None:
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        self._translate_habits(config)
        start = config.get("ckpt_path")
        named = start is None or start in ("best", "last", "hpc") or start.startswith("registry")
        if not named and not Path(start).exists():
            raise KDError(f"there is no checkpoint {start}: write an existing one to --ckpt_path")
        if config.trainer.default_root_dir is None:
            fallback = os.environ.get(RUN_VARIABLE) or f"runs/{datetime.now():%Y%m%d-%H%M%S}"
            os.environ[RUN_VARIABLE] = fallback
            config.trainer.default_root_dir = fallback
        if self.subcommand in IN_ONE_PROCESS:
            for key, alone in {"devices": 1, "num_nodes": 1, "strategy": "auto"}.items():
                config.trainer[key] = alone
        if self.subcommand == "doctor":
            self.planned = config.trainer.clone()
            for key, value in in_this_process(config.trainer.accelerator).items():
                config.trainer[key] = value
        if self.subcommand == "fit":
            self.start = self._where_to_start(config)
            if self.start.checkpoint is not None:
                config.ckpt_path = str(self.start.checkpoint)

    def _where_to_start(self, config: Any) -> Start:
        """At step 0 or at a checkpoint; the run's folder belongs to this process from here on."""
        folder = Path(config.trainer.default_root_dir)
        if config.resume != "never" and config.ckpt_path is not None:
            raise KDError("fit takes either --resume or --ckpt_path, not both")
        if config.resume == "never" and config.ckpt_path is None:
            refuse_existing_run(folder)
        if getattr(rank_zero_only, "rank", 0) == 0:
            lock = RunLock(folder)
            lock.acquire()
            self.closing.callback(lock.release)
        text = recorded(self._parser(self.subcommand), config)
        start = find(config.resume, folder, yaml.safe_load(text))
        if config.resume not in ("never", "auto", "force") and not start.continues:
            refuse_existing_run(folder)  # a branch of another folder's run
        return start

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        told = self._get(self.config_init, "trainer")
        unwanted: list[type] = []
        if told.enable_progress_bar is False:
            unwanted.append(ProgressBar)
        if told.enable_checkpointing is False:
            unwanted.append(Checkpoint)
        named = told.callbacks or []
        given = named if isinstance(named, list) else [named]
        given = [c for c in given if not isinstance(c, tuple(unwanted))]
        wanted = told.enable_checkpointing is not False
        if wanted and not any(isinstance(c, Checkpoint) for c in given):
            given = [*given, Keeper()]
        told.callbacks = given
        trainer = super().instantiate_trainer(**kwargs)
        assert isinstance(trainer, KDTrainer)
        place_loggers(trainer.loggers, trainer.default_root_dir)
        trainer.start = self.start
        trainer.planned = self.planned
        if self.start.continues and trainer.is_global_zero:
            go_on(trainer.loggers, trainer.default_root_dir, self.start.step)
        return trainer

    def _translate_habits(self, config: Any) -> None:
        """What Lightning refuses under manual optimization, handed to the Distiller."""
        pieces = config.trainer.accumulate_grad_batches
        if pieces > 1 and (tokens := config.data.init_args.get("batch_tokens")):
            config.model.micro_batch_tokens = config.model.micro_batch_tokens or tokens
            config.data.init_args.batch_tokens = tokens * pieces
            config.trainer.accumulate_grad_batches = 1
            rank_zero_info(
                f"accumulate_grad_batches={pieces}: an optimizer step takes {tokens * pieces} "
                f"tokens per process (data.batch_tokens), {config.model.micro_batch_tokens} at "
                "once (model.micro_batch_tokens)"
            )
        elif pieces > 1:
            rows = config.data.init_args.batch_size
            config.model.micro_batch_rows = config.model.micro_batch_rows or rows
            config.data.init_args.eval_batch_size = config.data.init_args.eval_batch_size or rows
            config.data.init_args.batch_size = rows * pieces
            config.trainer.accumulate_grad_batches = 1
            rank_zero_info(
                f"accumulate_grad_batches={pieces}: an optimizer step takes {rows * pieces} rows "
                f"per process (data.batch_size), {config.model.micro_batch_rows} at once "
                "(model.micro_batch_rows)"
            )
        if config.trainer.gradient_clip_algorithm == "value":
            raise KDError(
                "gradients are clipped by norm: write --trainer.gradient_clip_algorithm=norm"
            )
        if config.trainer.gradient_clip_val is not None:
            config.model.gradient_clip_norm = float(config.trainer.gradient_clip_val)
            config.trainer.gradient_clip_val = None
            rank_zero_info(
                f"gradient_clip_val: model.gradient_clip_norm={config.model.gradient_clip_norm}"
            )
        if str(config.trainer.precision) in ("16", "16-mixed", "16-true"):
            raise KDError("float16 needs a loss scaler: write --trainer.precision=bf16-mixed")


def worth_saying(record: logging.LogRecord) -> bool:
    """Not advertisements, nor lines about hardware that nobody asked for."""
    return not record.getMessage().startswith(("💡", "TPU available", "HPU available"))


def load_plugins() -> None:
    """Let configurations use the class names of the plug-in modules."""
    for name in PLUGINS:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)


def run(argv: Sequence[str], commands: Sequence[str]) -> KDCLI:
    """Parse, build and run a command."""
    if argv[0] not in commands and not argv[0].startswith("-"):
        raise KDError(f"there is no command `{argv[0]}`{nearest(argv[0], commands)}")
    load_plugins()
    quiet()
    set_parsing_settings(
        docstring_parse_attribute_docstrings=True, omegaconf_absolute_to_relative_paths=True
    )
    KDCLI.wanted = argv[0] if argv[0] in commands else None
    with ExitStack() as KDCLI.closing:
        return KDCLI(
            Distiller,
            KDDataModule,
            trainer_class=KDTrainer,
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
            seed_everything_default=0,
            save_config_callback=RecordConfig,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=KDParser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            args=list(argv),
        )


def quiet() -> None:
    """Keep hints that a user cannot act on from burying the ones that matter."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # values are global already
    warnings.filterwarnings("ignore", message=".*checkpointing.* is deprecated.*")  # new name: 5.23
    warnings.filterwarnings("ignore", message=".*custom batch sampler `GlobalSampler`.*")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(worth_saying)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
