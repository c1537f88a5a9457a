"""Real pretrained teacher, real text: distilled against cross-entropy and a shuffled teacher.

`python -m benchmarks.tiny_stories` trains every arm for every seed through the command line (same
data, same steps, same start), evaluates the exported students against the true teacher on the
held-back stories, and writes `benchmarks/results/tiny_stories.json`. With `--caches` the arms are
the live teacher and caches of it, and the file is `tiny_stories_cached.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EXPERIMENT = ["-c", "configs/experiment/tiny_stories.yaml"]
ARMS = {
    "distilled (forward KL)": [],
    "cross-entropy on the text": ["-c", "configs/method/labels.yaml"],
    "shuffled teacher": ["--model.teacher=benchmarks.controls.ShuffledTeacher"],
}
CACHES = {
    "live teacher": None,
    "cached top-64": ["--kind=topk", "--k=64"],
    "cached hidden states (bf16)": ["--kind=hidden"],
    "sampled, 64 draws (RS-KD)": ["--kind=sampled", "--draws=64"],
}
"""With `--caches`: how the cache of each arm is written."""
SHARED = "${oc.env:KD_SHARED,../shared}"


def run(command: list[str]) -> float:
    """Run `train.py` with one thread; its CPU seconds."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    full = [sys.executable, "train.py", *command]
    timed = [sys.executable, "-c", _TIMED, json.dumps(full)]
    done = subprocess.run(timed, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(full)} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


_TIMED = (
    "import json, resource, subprocess, sys\n"
    "done = subprocess.run(json.loads(sys.argv[1]), stdout=sys.stderr)\n"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    "print(used.ru_utime + used.ru_stime)\n"
    "sys.exit(done.returncode)\n"
)


def arm(name: str, seed: int, folder: Path, steps: int | None) -> dict[str, Any]:
    """Train, export and evaluate one student."""
    place = folder / f"{slug(name)}-{seed}"
    quick = ["--trainer.enable_progress_bar=false"]
    cut = [] if steps is None else [f"--trainer.max_steps={steps}"]
    keep = ["--trainer.callbacks=callbacks.ExportStudent", "--trainer.logger=false"]
    seeded = [f"--seed_everything={seed}", f"--trainer.default_root_dir={place}"]
    teacher = f"--model.teacher.path={SHARED}/models/stories260k".replace(
        SHARED, os.environ.get("KD_SHARED", "../shared")
    )
    more = [*ARMS.get(name, []), *([teacher] if "shuffled" in name else [])]
    if CACHES.get(name) is not None:
        more = ["--model.teacher=CachedTeacher", f"--model.teacher.path={folder / slug(name)}"]
    seconds = run(["fit", *EXPERIMENT, *more, *seeded, *quick, *keep, *cut])
    quiet = ["--trainer.callbacks=null", "--trainer.logger=false"]
    told = [f"--student={place / 'student'}", "--split=validation", f"--output={place / 'result'}"]
    run(["evaluate", *EXPERIMENT, *told, *quiet])
    found = json.loads((place / "result" / "comparison.json").read_text())["columns"]["student"]
    return {"arm": name, "seed": seed, "cpu_seconds": seconds, **found["metrics"]}


def slug(name: str) -> str:
    """A folder's name."""
    return "-".join(name.split("(")[0].replace(",", "").split())


def write_cache(name: str, folder: Path) -> dict[str, Any]:
    """Write the cache of an arm; its bytes per token."""
    how = CACHES[name]
    assert how is not None
    place = folder / slug(name)
    seconds = run([
        "cache", *EXPERIMENT, *how, f"--output={place}", "--trainer.callbacks=null",
        "--trainer.logger=false", f"--trainer.default_root_dir={folder}",
    ])  # fmt: skip
    told = json.loads((place / "manifest.json").read_text())
    size = sum(shard["bytes"] for shard in told["shards"])
    return {
        "cache_cpu_seconds": seconds,
        "bytes_per_token": size / told["planned"]["tokens"],
        "weights": told["teacher"]["weights"],
    }


def start(seed: int, folder: Path) -> dict[str, Any]:
    """The untrained student."""
    place = folder / f"start-{seed}"
    run([
        "evaluate", *EXPERIMENT, f"--seed_everything={seed}", "--split=validation",
        f"--output={place}", "--trainer.callbacks=null", "--trainer.logger=false",
    ])  # fmt: skip
    found = json.loads((place / "comparison.json").read_text())["columns"]["student"]
    return {"arm": "before training", "seed": seed, "cpu_seconds": 0.0, **found["metrics"]}


def main() -> None:
    """All arms, all seeds, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="instead of the experiment's own")
    parser.add_argument("--parallel", type=int, default=2, help="runs at once")
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/tiny_stories"))
    parser.add_argument("--caches", action="store_true", help="the live teacher against caches")
    options = parser.parse_args()
    folder = options.folder.absolute() / time.strftime("%Y%m%d-%H%M%S")
    arms = list(CACHES if options.caches else ARMS)
    stored = {n: write_cache(n, folder) for n in arms if options.caches and CACHES[n] is not None}
    with ThreadPoolExecutor(options.parallel) as pool:
        jobs = [pool.submit(start, seed, folder) for seed in range(1, options.seeds + 1)]
        jobs += [
            pool.submit(arm, name, seed, folder, options.steps)
            for seed in range(1, options.seeds + 1)
            for name in arms
        ]
        rows = [job.result() for job in jobs]
    rows = [{**row, **stored.get(row["arm"], {})} for row in rows]
    report = {
        "command": f"python -m benchmarks.tiny_stories {' '.join(sys.argv[1:])}",
        "steps": options.steps or "the experiment's",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, one thread a run",
        "rows": rows,
    }
    name = "tiny_stories_cached" if options.caches else "tiny_stories"
    out = ROOT / f"benchmarks/results/{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    for name in ["before training", *arms]:
        kls = [row["kl"] for row in rows if row["arm"] == name]
        cpu = max(row["cpu_seconds"] for row in rows if row["arm"] == name)
        shown = " ".join(f"{value:.3f}" for value in kls)
        print(f"{name:<28} KL(teacher||student) by seed: {shown}   CPU seconds <= {cpu:.0f}")


if __name__ == "__main__":
    main()
