"""No line of ours reads a pickle that could run code."""

import ast

from tests.conftest import ROOT

SOURCES = sorted([*(ROOT / "kd_lightning").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")])


def unsafe(source: str) -> list[int]:
    """Lines of calls that unpickle whatever they are given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        called = ast.unparse(node.func)
        safe = any(ast.unparse(keyword) == "weights_only=True" for keyword in node.keywords)
        if called in ("pickle.load", "pickle.loads") or (called == "torch.load" and not safe):
            found.append(node.lineno)
    return found


def test_every_load_is_of_plain_data():
    assert len(SOURCES) > 50
    found = {str(path): unsafe(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_an_unsafe_one_would_be_found():
    assert unsafe("pickle.loads(x)\ntorch.load(x)\ntorch.load(x, weights_only=False)") == [1, 2, 3]
    assert unsafe("torch.load(x, weights_only=True)") == []
