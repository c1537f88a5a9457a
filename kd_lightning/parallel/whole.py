"""A student in one piece, to be exported."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.spec import StudentSpec
from kd_lightning.parallel import states
from kd_lightning.parallel.learned import refuse_unless_same


def in_one_piece(student: CausalLM, spec: StudentSpec) -> CausalLM | None:
    """The student itself if it is whole; of a sharded one a copy on the first process's CPU.

    A collective call; None on the other processes. Adapters of quantised weights are put on the
    same weights as they were before quantisation, into which they can be merged.
    """
    sharded, quantised = student.placement is not None, spec.quantization != "none"
    if not sharded and not quantised:
        return student
    learned = states.collect(student, whole=sharded)
    if sharded and dist.get_rank() != 0:
        return None
    with torch.random.fork_rng():  # a new student draws weights that are replaced at once
        copy = build_student(
            replace(spec, quantization="none", compile=False), student.tokenizer
        ).eval()
    refuse_unless_same(copy, learned, "of this run")
    copy.load_state_dict(learned, strict=False)  # frozen weights are there by now
    return copy
