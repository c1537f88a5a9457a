"""What makes training data the same: a checkpoint's position means nothing in other rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from kd_lightning.data.encoding import Encoded
from kd_lightning.errors import KDError

MEANING = {
    "rows": "training rows",
    "digest": "the content of the training rows (or how they are encoded)",
    "rows_per_step": "rows (or tokens) of all processes in one step",
    "seed": "the seed of their order",
}


def facts(rows: Sequence[Encoded], rows_per_step: int, seed: int) -> dict[str, Any]:
    """Number, digest and order of the rows."""
    digest = hashlib.blake2b(digest_size=16)
    for i, row in enumerate(rows):
        digest.update(row.key)
        if row.group is not None or row.reward is not None:
            joined = i > 0 and row.group is not None and row.group == rows[i - 1].group
            digest.update(f"{joined} {row.reward}".encode())
    return {
        "rows": len(rows),
        "digest": digest.hexdigest(),
        "rows_per_step": rows_per_step,
        "seed": seed,
    }


def compare_facts(saved: Mapping[str, Any], now: Mapping[str, Any], start: Any) -> None:
    """Refuse what differs, unless the run was told to go on by force."""
    wrong = [name for name in MEANING if name in saved and name in now and saved[name] != now[name]]
    if not wrong:
        return
    told = "; ".join(f"{MEANING[n]}: {saved[n]} then, {now[n]} now" for n in wrong)
    if getattr(start, "forced", False):
        rank_zero_warn(f"going on by force with other data: {told}")
        return
    raise KDError(
        f"the checkpoint belongs to other training data ({told}): restore the data, choose "
        "data.batch_size (or batch_tokens) so that its product with the number of processes stays, "
        "or write --resume=force"
    )
