"""Many kills in one run: `python -m tests.faults.soak FOLDER --kills 200 --steps 2000`.

Each kill -9 falls up to 50 ms after a random step has begun: into the step, the writer of a
checkpoint, a validation. At the end the run must be the undisturbed one, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from pathlib import Path

from tests.faults.parts import trace
from tests.faults.victim import Victims
from tests.tiny import save_model


def soak(folder: Path, kills: int, steps: int, variant: str, seed: int = 0) -> dict[str, object]:
    """The figures; raises where anything differs."""
    draw = random.Random(seed)
    teacher = folder / "teacher"
    save_model(teacher, width=32, layers=3, seed=1)
    victims = Victims(folder / "log.txt")
    job = {"variant": variant, "teacher": str(teacher), "steps": steps, "every": 10,
           "validate": 100, "rows": 100}  # fmt: skip
    begun = time.monotonic()
    killed = 0
    try:
        for step in sorted(draw.choices(range(steps * 9 // 10), k=kills)):  # none after the end
            delay = draw.uniform(0.001, 0.05)
            code = victims.run(folder / "soak", kill_at=step, kill_delay=delay, **job)
            killed += code == -signal.SIGKILL
        while victims.run(folder / "soak", **job) != 0:
            raise SystemExit((folder / "soak/said.txt").read_text()[-3000:])
        assert victims.run(folder / "whole", **job) == 0
    finally:
        victims.close()
    one, two = trace(folder / "soak"), trace(folder / "whole")
    ends = [json.loads((folder / name / "final.json").read_text()) for name in ("soak", "whole")]
    done = len((folder / "soak/trace.jsonl").read_text().splitlines())
    assert killed == kills and one == two and ends[0] == ends[1], (killed, one == two, ends)
    return {"kills": killed, "steps": steps, "variant": variant, "steps done again": done - steps,
            "seconds": round(time.monotonic() - begun)}  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--variant", default="dropout")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(soak(told.folder, told.kills, told.steps, told.variant)))
