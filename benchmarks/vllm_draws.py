"""A vLLM server on a processor (`make vllm`) beside our own generation: the demo teacher's answers.

`python -m benchmarks.vllm_draws` starts the server on loopback and ends it. Rounds alternate. Both
share the machine's cores with the client, and seconds of processor time are those of all of the
server's processes and the client's: they say more than seconds on a machine that others use too.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.harness import OURS, Report, median, parser
from kd_lightning.data.skills.demo_rows import FAMILIES, draw
from kd_lightning.errors import KDError
from kd_lightning.models.drawing import Draw
from kd_lightning.models.loading import resolve
from kd_lightning.rollouts.engines import Engine, Generate
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers.local import LocalTeacher
from kd_lightning.teachers.wording import Wording
from kd_lightning.types import Prompt, Sampling

SIZES = {"full": (64, 64), "tiny": (5, 8)}
"""Prompts, and the longest answer."""
VLLM = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
}  # fmt: skip


Rounds = defaultdict[tuple[str, str], list[tuple[float, float, float]]]
"""Case and way to seconds, seconds of processors and tokens of each round."""


@contextmanager
def server(folder: str) -> Iterator[tuple[str, int]]:
    """Its address, and the group of its processes."""
    program = Path(os.environ.get("KD_VLLM", ".venv-vllm")) / "bin/vllm"
    if not program.exists():
        raise KDError(f"no {program}: make vllm, or name an environment in KD_VLLM")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        str(program), "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--dtype",
        "float32", "--max-model-len", "512", "--max-num-seqs", "64", "--enforce-eager",
        "--served-model-name", "student",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env={**os.environ, **VLLM}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}/v1"
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{url}/models", timeout=5):
                    break
            except OSError:
                if process.poll() is not None:
                    raise KDError("vLLM did not start") from None
                time.sleep(0.5)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def spent(group: int) -> float:
    """Seconds of processor time of a group of processes so far."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group or int(fields[3]) == group:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cases(teacher: LocalTeacher, prompts: int, room: int) -> dict[str, list[Draw]]:
    """What is to be answered at temperature 1: questions, and signs that no turn ends."""
    wording = Wording(teacher.tokenizer)
    items = [item for name in FAMILIES for item in draw(name, "test", -(-prompts // 5), 0)]
    how = Sampling(room, temperature=1.0)
    questions = [wording.prompt(Prompt.user(item.prompt)) for item in items[:prompts]]
    signs = [(10 + i, 11 + i, 12 + i) for i in range(prompts)]
    return {
        "short": [Draw(ids, how, room) for ids in questions],
        "long": [Draw(ids, how, room) for ids in signs],
    }


def main(arguments: Sequence[str] | None = None) -> Report:
    """Run it."""
    options = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    prompts, room = SIZES[options.preset]
    report = Report(
        "vllm_draws", f"{prompts} prompts, answers of up to {room} tokens", options.preset
    )
    teacher = LocalTeacher("demo", dtype="float32")
    teacher.open()
    asked, found = cases(teacher, prompts, room), Rounds(list)
    with server(resolve("demo")) as (url, group):
        served = VLLMServer(url)
        served.loaded = 0
        ways: dict[str, Engine] = {f"{OURS}: Generate": Generate(), "VLLMServer": served}
        for round_ in range(options.repeats + 1):
            for name in list(ways)[:: 1 if round_ % 2 else -1]:
                for case, draws in asked.items():
                    start, before = time.perf_counter(), time.process_time() + spent(group)
                    made = ways[name].draw(teacher.model, draws)
                    took = time.perf_counter() - start
                    cpu = time.process_time() + spent(group) - before
                    if round_:
                        length = float(sum(len(one.tokens) for one in made))
                        found[case, name].append((took, cpu, length))
        served.close()
    panels: dict[str, dict[str, float]] = {case: {} for case in asked}
    for (case, name), rounds in sorted(found.items()):
        seconds, cpu, tokens = (median(values) for values in zip(*rounds, strict=True))
        panels[case][name] = round(prompts / seconds, 1)
        report.row(
            case=case, way=name, answers=prompts, tokens=int(tokens), seconds=round(seconds, 3),
            cpu=round(cpu, 3), answers_per_s=panels[case][name],
            tokens_per_s=round(tokens / seconds),
        )  # fmt: skip
    report.finish(options.out, panels, "answers per second")
    return report


if __name__ == "__main__":
    main()
