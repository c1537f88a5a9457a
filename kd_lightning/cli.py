"""The command line: `python train.py <command>`, and the same as `kd <command>`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "fit": "train a student",
    "validate": "measure a student on the validation rows",
    "test": "measure a student on the test rows, answers graded",
    "predict": "let a student answer",
    "cache": "write down what a teacher says of the data, to train from without it",
    "doctor": "is this run going to work? everything that can be known before it",
    "evaluate": "teacher, student and a baseline side by side: table, JSON, plots",
    "export": "write the student as a Hugging Face folder with a model card",
    "elicit": "draw knowledge out of a generator, curate it, write it as a set to train on",
    "inspect": "what is in a knowledge set: card, samples, lengths, duplicates, plots",
    "pipeline": "stages that repeat: elicit, fit, evaluate, elicit with the new student ...",
    "checkpoint": "verify: whether checkpoints are whole (kd checkpoint verify PATH ...)",
}

HELP = f"""usage: kd <command> [-c FILE.yaml ...] [--key.of.the.config=value ...]
       (or: python train.py <command> ...)

Distil a frozen teacher into a student.

commands:
{chr(10).join(f"  {name:<10} {what}" for name, what in COMMANDS.items())}

configurations:
  -c FILE                          read a configuration; later files win, key by key
  --model.loss=ReverseKL           choose a part by its class name
  --model.loss.temperature=2       change one of its arguments
  --print_config                   print the whole resolved configuration and stop
  kd fit --model.loss.help=TAID    what a part can be told
  kd <command> --help              every key

examples:
  kd fit -c configs/experiment/demo.yaml
  kd fit -c configs/experiment/demo.yaml -c configs/method/reverse_kl.yaml --trainer.max_steps=200
  kd doctor -c configs/experiment/qwen3_instruction.yaml --gpus=8 --memory=141GiB
  kd elicit -c configs/elicit/demo.yaml
  kd evaluate -c configs/experiment/demo.yaml --student=runs/demo/student
"""


APART = {
    "elicit": "kd_lightning.elicitation:elicit",
    "inspect": "kd_lightning.knowledge.look:look",
    "pipeline": "kd_lightning.pipeline.run:pipeline",
}
"""Commands that train nothing themselves, with what runs them."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 2 with one sentence when the input was wrong."""
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if argv[0] in ("-V", "--version"):
        from kd_lightning import __version__

        print(f"kd_lightning {__version__}")
        return 0
    if argv[0] == "checkpoint":
        return checkpoint(argv[1:])
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from kd_lightning.application import run
    from kd_lightning.errors import KDError
    from kd_lightning.security.secrets import guard_output

    guard_output()
    try:
        if argv[0] in APART:
            module, function = APART[argv[0]].split(":")
            getattr(importlib.import_module(module), function)(argv[1:])
        else:
            run(argv, list(COMMANDS))
    except KeyboardInterrupt:
        if argv[0] not in APART:
            raise
        print("interrupted: what is done is kept, and the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, MisconfigurationException) as error:
        said: BaseException | None = error  # the parser wraps what a constructor says
        while said is not None and not isinstance(said, (KDError, MisconfigurationException)):
            said = said.__cause__
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        return 2
    return 0


def checkpoint(argv: Sequence[str]) -> int:
    """`checkpoint verify PATH ...`; needs no torch."""
    from kd_lightning.errors import KDError
    from kd_lightning.reliability.commit import verify

    try:
        if len(argv) < 2 or argv[0] != "verify":
            raise KDError("write kd checkpoint verify PATH: a checkpoint, its folder or a run's")
        return verify(list(argv[1:]))
    except KDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
