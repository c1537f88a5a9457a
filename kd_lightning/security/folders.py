"""Model folders of unknown origin: what could run code or leave the folder is refused, by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd_lightning.errors import KDError

CODE = {"auto_map", "custom_pipelines", "custom_generate"}
"""Keys that point transformers at Python files of the folder or of another one on the hub."""

INTERNAL = "_implementation_internal"
"""Keys that choose a kernel, or a repository of kernels, past the checks of the public option."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")


def refuse_hostile(folder: Path, weights: bool = False) -> None:
    """Look through a model's or tokenizer's folder before anything of it is read.

    Args:
        folder: The folder; one that is none (a name on the hub) is left to transformers, which is
            told to trust no code.
        weights: Also ask for weights as safetensors.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json")):
        if path.name in ("tokenizer.json", "vocab.json", "added_tokens.json"):
            continue  # words, not settings
        _refuse_settings(path, _read(path))
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.resolve().exists():
            raise KDError(f"{path} points to nothing: copy the model's folder once more")
    if weights:
        _refuse_pickles(folder)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise KDError(f"{path} is no JSON ({error}): copy the model's folder once more") from error


def _refuse_settings(path: Path, settings: Any) -> None:
    for key, value in _pairs(settings):
        if key in CODE:
            raise KDError(
                f"{path} names Python code to run ({key}): use a model that transformers knows "
                "itself, or remove the entry if that is enough; remote code is never run"
            )
        if key.endswith(INTERNAL):
            raise KDError(f"{path} chooses a kernel behind the public option ({key}): remove it")
        if key.endswith("attn_implementation") and isinstance(value, str) and "/" in value:
            raise KDError(f"{path} asks for attention code from elsewhere ({value}): remove {key}")
        if key == "weight_map" and isinstance(value, dict):
            for name in map(str, value.values()):
                _refuse_path(path, name, "weights")
        if key in ("chat_template", "name") and path.name.startswith("tokenizer"):
            for name in _template_names(key, value):
                _refuse_path(path, name, "a chat template")


def _template_names(key: str, value: Any) -> Iterator[str]:
    if key == "chat_template" and isinstance(value, list):
        yield from (str(t["name"]) for t in value if isinstance(t, dict) and "name" in t)
    elif key == "chat_template" and isinstance(value, dict):
        yield from map(str, value)


def _refuse_path(path: Path, name: str, what: str) -> None:
    if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise KDError(f"{path} names {what} outside its folder ({name!r}): copy the model anew")


def _refuse_pickles(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        raise KDError(
            f"{folder / pickled[0]} can run code when it is read: save the weights as safetensors "
            "(model.save_pretrained of transformers writes them)"
        )


def _pairs(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every key at every depth."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield str(key), value
            yield from _pairs(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _pairs(value)
