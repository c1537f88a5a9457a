"""The hostile corpus: folders, configurations, checkpoints, templates and names of foreign origin.

Every piece tries to leave a mark (a file) when it is worked on; none may, and each is refused with
a sentence that names it.
"""

import json
import pickle
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from kd_lightning.cli import main
from kd_lightning.data.templates import Template
from kd_lightning.errors import KDError
from kd_lightning.models import loading
from kd_lightning.types import Message
from tests.conftest import ROOT
from tests.tiny import save_model


class Marks:
    """Writes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (Path(self.mark), "code ran"))


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    save_model(folder)
    return folder


def edit(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def code(folder, mark):
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').write('code ran')\n")


# ------------------------------------------------------------------ six model folders
def own_classes(folder, mark):
    code(folder, mark)
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})


def own_tokenizer(folder, mark):
    code(folder, mark)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})


def pickled(folder, mark):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Marks(mark)))


def hidden_kernel(folder, mark):
    edit(folder / "config.json", _attn_implementation_internal="someone/evil-kernel")


def kernel_from_elsewhere(folder, mark):
    edit(folder / "config.json", attn_implementation="someone/evil-kernel")


def weights_elsewhere(folder, mark):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


FOLDERS = {
    own_classes: "config.json names Python code",
    own_tokenizer: "tokenizer_config.json names Python code",
    pickled: "pytorch_model.bin can run code",
    hidden_kernel: "_attn_implementation_internal",
    kernel_from_elsewhere: "someone/evil-kernel",
    weights_elsewhere: "outside its folder",
}


@pytest.mark.parametrize("hostile", FOLDERS, ids=lambda f: f.__name__)
def test_model_folders(hostile, model, mark):
    hostile(model, mark)
    with pytest.raises(KDError, match=FOLDERS[hostile]):
        loading.load_tokenizer(str(model))
        loading.load_model(str(model))
    assert not mark.exists()


def test_the_same_folder_without_malice_loads(model):
    loading.load_tokenizer(str(model))
    loading.load_model(str(model))


# ------------------------------------------------------------------ five configurations
def configurations(mark):
    touch = f"open({str(mark)!r}, 'w').write('code ran')"
    return {
        "a python tag": (
            f"trainer: !!python/object/apply:os.system ['touch {mark}']",
            "python",
        ),
        "a function for an optimizer": ("model: {optimizer: os.system}", "optimizer"),
        "a process for a callback": (
            "trainer: {callbacks: [{class_path: subprocess.Popen, "
            f"init_args: {{args: [touch, {mark}]}}}}]}}",
            "callbacks",
        ),
        "a function for a loss": (
            f'model: {{loss: {{class_path: builtins.exec, init_args: {{code: "{touch}"}}}}}}',
            "loss",
        ),
        "a resolver that is none": ("model: {teacher: {class_path: '${eval:1+1}'}}", "eval"),
    }


@pytest.mark.parametrize("name", configurations("x"))
def test_configurations(name, mark, tmp_path, capsys):
    text, named = configurations(mark)[name]
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    given = ["fit", "-c", str(ROOT / "configs/experiment/demo.yaml"), "-c", str(path)]
    assert main([*given, f"--trainer.default_root_dir={tmp_path / 'run'}"]) == 2
    assert named in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "run").exists()


# ------------------------------------------------------------------ five checkpoints
def evil_folder(path, part, mark):
    """A sharded checkpoint of which one file runs code."""
    layer = torch.nn.Linear(1, 1)
    dcp.save({"state_dict": layer.state_dict()}, checkpoint_id=path, no_dist=True)
    torch.save(
        {"global_step": 1, "evil": Marks(mark)} if part == "meta.pt" else {}, path / "meta.pt"
    )
    if part == ".metadata":
        (path / part).write_bytes(pickle.dumps(Marks(mark)))


CHECKPOINTS = {
    "evil.ckpt": "evil.ckpt holds more than tensors",
    "evil.pt": "evil.pt holds more than tensors",
    "evil.bin": "evil.bin holds more than tensors",
    "meta.pt": "meta.pt holds more than tensors",
    ".metadata": "index asks for .*write_text",
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name, mark, tmp_path):
    from kd_lightning.trainer import load_weights

    path = tmp_path / name
    if name.startswith("evil"):
        torch.save({"state_dict": {"w": Marks(mark)}}, path)
    else:
        path = tmp_path / "step000001.ckpt"
        evil_folder(path, name, mark)
    with pytest.raises(KDError, match=CHECKPOINTS[name]):
        load_weights(torch.nn.Linear(1, 1), path)
    assert not mark.exists()


# ------------------------------------------------------------------ seven templates
ESCAPES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
    "builtins": "{{ self.__init__.__globals__.__builtins__.open('MARK', 'w') }}",
    "the filter": "{{ 'a'|attr('__class__')|attr('__base__') }}",
    "a change": "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a loop without end": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("escape", ESCAPES)
def test_templates(escape, mark, tmp_path, model, monkeypatch):
    monkeypatch.setattr("kd_lightning.data.templates.SECONDS", 0.5)
    path = tmp_path / "template.jinja"
    text = ESCAPES[escape].replace("MARK", str(mark))
    path.write_text("{% for m in messages %}{{ m.content }}{% endfor %}" + text)
    template = Template(loading.load_tokenizer(str(model)), str(path))
    start = time.monotonic()
    said = ""
    try:
        said = template.conversation([Message("user", "a"), Message("assistant", "b")], "r1").text
    except KDError as error:
        assert "row r1" in str(error)
    else:  # an undefined value renders as nothing
        assert "<class" not in said and "module" not in said
    assert time.monotonic() - start < 5
    assert not mark.exists()


# ------------------------------------------------------------------ twenty names
NAMES = [
    "..", ".", "", "../x", "../../x", "/x", "a/../../x", "a/b", "a\\b", "..\\x", "x\0y", "//x",
    "./../x", "~/x", "a/./../../x", "%2e%2e/x", "..;/x", "C:\\x", "a\nb/../../x", "…/../x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_templates(name, model, tmp_path):
    edit(
        model / "tokenizer_config.json",
        chat_template=[{"name": name, "template": "x"}, {"name": "default", "template": "y"}],
    )
    before = sorted(tmp_path.rglob("*"))
    outside = Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name
    if outside:
        with pytest.raises(KDError, match="outside its folder"):
            loading.load_tokenizer(str(model))
    else:
        loading.load_tokenizer(str(model)).save_pretrained(tmp_path / "saved")
    after = [p for p in sorted(tmp_path.rglob("*")) if (tmp_path / "saved") not in (p, *p.parents)]
    assert after == before
