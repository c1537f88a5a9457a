"""Thirteen programs that try to get out, or to pass without doing anything."""

import os
import socket
import time
from pathlib import Path

import pytest

from kd_lightning.errors import KDError
from kd_lightning.security import sandbox
from kd_lightning.security.sandbox import Limits, run

pytestmark = pytest.mark.skipif(bool(sandbox.missing()), reason=f"no sandbox: {sandbox.missing()}")

SHORT = Limits(seconds=1.5, memory_bytes=256 * 2**20, disk_bytes=2**20, output_bytes=2**12)

CANARY = "canary-4711-in-the-parents-environment"


def test_a_program_runs_and_says_what_it_printed():
    done = run("def add(a, b): return a + b\nassert add(1, 2) == 3\nprint('good')", allowed=True)
    assert (done.passed, done.reason, done.output) == (True, "ran", "good")


def test_a_failed_test_says_why():
    done = run("assert 1 + 1 == 3, 'wrong sum'", allowed=True)
    assert not done.passed and done.reason == "failed" and "wrong sum" in done.output


def test_off_unless_allowed():
    with pytest.raises(KDError, match="allow_code=true"):
        run("print(1)", allowed=False)


def test_refused_where_there_are_no_namespaces(monkeypatch):
    monkeypatch.setattr(sandbox, "missing", lambda: "only Linux has namespaces")
    with pytest.raises(KDError, match="only Linux has namespaces"):
        run("print(1)", allowed=True)


ENDED = {
    "endless loop": "while True: pass",
    "sleeps": "import time; time.sleep(60)",
    "memory": "x = bytearray(2**30)",
    "a big file": "open('big', 'wb').write(b'x' * 2**22)",
    "floods the output": "while True: print('x' * 1000)",
    "leaves early, content": "import os; os._exit(0)",
    "exits, content": "raise SystemExit(0)",
    "claims to have passed": "print('passed'); import os; os._exit(0)",
}


@pytest.mark.parametrize("program", ENDED.values(), ids=ENDED)
def test_ended_and_not_passed(program):
    start = time.monotonic()
    done = run(program + "\nassert False", allowed=True, limits=SHORT)
    assert not done.passed
    assert time.monotonic() - start < 10
    assert len(done.output) <= SHORT.output_bytes


def said(program: str) -> str:
    done = run(program, allowed=True, limits=SHORT)
    assert done.passed, done
    return done.output


TRY = """
import os, socket, subprocess
def attempt(what):
    try:
        return what()
    except BaseException as error:
        return "refused " + type(error).__name__
"""


def test_no_network(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"print(attempt(lambda: socket.create_connection(('127.0.0.1', {port}), 1)))"
        assert "refused" in said(TRY + program)


def test_no_environment_of_ours(monkeypatch):
    monkeypatch.setenv("KD_CANARY_KEY", CANARY)
    program = """
found = str(dict(os.environ))
for process in os.listdir("/proc"):
    if process.isdigit():
        found += str(attempt(lambda: open(f"/proc/{process}/environ").read()))
print(found)
"""
    assert CANARY not in said(TRY + program)


def test_no_file_of_ours_is_read_or_written(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    home, new = Path.home() / ".kd_escape", tmp_path / "new"
    targets = [str(secret), str(home), str(new), "/usr/kd_escape"]
    program = f"""
for target in {targets}:
    print(attempt(lambda: open(target).read()))
    print(attempt(lambda: open(target, "w").write("x")))
    print(attempt(lambda: open("/proc/1/root" + target, "w").write("x")))
print(attempt(lambda: os.chroot(".")))
"""
    output = said(TRY + program)
    assert CANARY not in output and output.count("refused") == 13
    assert secret.read_text() == CANARY
    assert not any(Path(target).exists() for target in targets[1:])


def test_no_process_of_ours_is_seen_or_ended():
    program = f"""
print(sorted(p for p in os.listdir("/proc") if p.isdigit())[-1])
print(attempt(lambda: os.kill({os.getpid()}, 9)))
"""
    last, killed = said(TRY + program).splitlines()
    assert int(last) < 100 and "refused" in killed


def test_what_it_starts_ends_with_it():
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    time.sleep(3600)
"""
    marker = str(time.time_ns() % 10**6 + 3600)
    run(program.replace("3600", marker), allowed=True, limits=SHORT)
    commands = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not any(marker.encode() in command for command in commands)


def test_a_fork_bomb_stays_small():
    program = """
import os
made = 0
try:
    while made < 500:
        if os.fork() == 0:
            import time; time.sleep(60)
        made += 1
except OSError:
    pass
print("children", made)
"""
    done = run(program, allowed=True, limits=SHORT)
    assert int(done.output.split()[-1]) <= Limits().processes
