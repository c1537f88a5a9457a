"""The student speaks with the weights that it has: exported, saved in a run, or being trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging

from kd_lightning.errors import KDError
from kd_lightning.models.causal import CausalLM, build_student
from kd_lightning.models.spec import LoraSpec
from kd_lightning.reliability import checkpoint_io
from kd_lightning.reliability.checkpoint_io import VerifiedIO
from kd_lightning.teachers.student import Student
from kd_lightning.types import Prompt, Sampling
from tests.parallel.runs import Batches, SaveAt, distiller, trainer

PROMPTS = [Prompt.text("abc"), Prompt.user("who?")]
HOW = Sampling(12, temperature=1.0, seed=1)


def recorded(model, folder: Path, **data) -> None:
    """What a run writes of its configuration."""
    taught = {"class_path": "kd_lightning.teachers.LocalTeacher"}
    taught["init_args"] = {"path": model.teacher.path}
    config = {
        "model": {"student": dataclasses.asdict(model.spec), "teacher": taught},
        "data": {"class_path": "Demo", "init_args": data},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def trained(teacher: str, folder: Path, **more) -> CausalLM:
    """A run of three steps that is saved after each of the last two; the student at its end."""
    model = distiller(teacher, "ForwardKL", **more)
    how = {"plugins": [VerifiedIO()]}
    fit = trainer(folder, 2, **how)
    fit.fit(model, Batches(0, 2))
    fit.save_checkpoint(folder / "checkpoints" / "step000002.ckpt")
    longer = trainer(folder, 3, **how)
    longer.fit(model, Batches(2, 1), ckpt_path=folder / "checkpoints" / "step000002.ckpt")
    longer.save_checkpoint(folder / "checkpoints" / "step000003.ckpt")
    recorded(model, folder)
    return model.student


@pytest.fixture(scope="module")
def run(tiny_teacher, tmp_path_factory) -> tuple[Path, CausalLM]:
    folder = tmp_path_factory.mktemp("run")
    return folder, trained(tiny_teacher, folder)


def scores(student: Student) -> list[float]:
    return [s.total for s in student.score(PROMPTS, ["hello", "nobody"])]


def test_a_run_speaks_with_its_newest_weights(run):
    folder, model = run
    live, saved = Student.live(model), Student(str(folder), device="cpu")
    assert saved.generate(PROMPTS, 2, HOW) == live.generate(PROMPTS, 2, HOW)
    assert scores(saved) == pytest.approx(scores(live), abs=1e-4)
    last = folder / "checkpoints" / "step000003.ckpt"
    first = folder / "checkpoints" / "step000002.ckpt"
    assert scores(Student(str(last), device="cpu")) == scores(saved)
    assert scores(Student(str(first), device="cpu")) != pytest.approx(scores(saved), abs=1e-4)


def test_an_exported_folder_speaks_like_the_run(run, tmp_path):
    folder, model = run
    model.save(tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n")
    exported = Student(str(tmp_path / "out"), device="cpu")
    assert exported.licence == "mit"
    assert scores(exported) == pytest.approx(scores(Student(str(folder), device="cpu")), abs=1e-4)
    with pytest.raises(KDError, match="exported model, which has one set of weights"):
        Student(str(tmp_path / "out"), average=True).open()


def test_the_weights_are_its_identity(run):
    folder, model = run
    live = Student.live(model)
    assert live.identity == Student(str(folder), device="cpu").identity
    first = Student(str(folder / "checkpoints" / "step000002.ckpt"), device="cpu")
    assert first.identity != live.identity
    assert Student.live(model, template="plain").identity != live.identity


def test_a_live_student_says_what_its_weights_say_now(tiny_teacher):
    model = distiller(tiny_teacher, "ForwardKL")
    student = build_student(model.spec, model.tokenizer)
    live = Student.live(student)
    before, was = scores(live), live.identity
    with torch.no_grad():
        next(student.parameters()).mul_(1.5)
    assert scores(live) != pytest.approx(before, abs=1e-4)
    live.open()
    assert live.identity != was
    live.close()
    assert student.training and live.model is student
    assert all(p.requires_grad for p in student.parameters())


def test_the_moving_average_speaks_where_there_is_one(tiny_teacher, run, tmp_path):
    model = distiller(tiny_teacher, "ForwardKL")
    saved = tmp_path / "checkpoints" / "step000003.ckpt"
    callbacks = [EMAWeightAveraging(decay=0.5), SaveAt(3, saved)]
    trainer(tmp_path, 3, callbacks=callbacks, plugins=[VerifiedIO()]).fit(model, Batches(0, 3))
    recorded(model, tmp_path)
    content = torch.load(saved, weights_only=True)
    name = next(iter(content["state_dict"]))
    now, mean = (Student(str(tmp_path), average=which, device="cpu") for which in (False, True))
    key = name.removeprefix("student.")
    assert torch.equal(mean.model.state_dict()[key], content["state_dict"][name])
    assert torch.equal(now.model.state_dict()[key], content["current_model_state"][name])
    assert scores(now) != pytest.approx(scores(mean), abs=1e-4)
    with pytest.raises(KDError, match="has no moving average"):
        Student(str(run[0]), average=True, device="cpu").open()


def test_a_moving_teacher_speaks_as_the_average(run, tmp_path):
    folder, _ = run
    step = Path("checkpoints") / "step000003.ckpt"
    content = checkpoint_io.read(folder / step)
    names = [n for n in content["state_dict"] if n.startswith("student.")]
    weights = {n.removeprefix("student."): content["state_dict"][n] * 0.5 for n in names}
    content["answering"] = {"rollout": {}, "teacher": {"weights": weights}}
    VerifiedIO().save_checkpoint(content, tmp_path / step)
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    mean = Student(str(tmp_path), average=True, device="cpu")
    assert torch.equal(mean.model.state_dict()[names[0].removeprefix("student.")],
                       content["state_dict"][names[0]] * 0.5)  # fmt: skip
    now = Student(str(tmp_path), device="cpu")
    assert scores(now) == scores(Student(str(folder), device="cpu")) != scores(mean)


def test_adapters_are_put_on_the_weights_they_were_trained_on(tiny_teacher, tmp_path):
    lora = LoraSpec(rank=4, targets=["q_proj", "v_proj"])
    model = trained(tiny_teacher, tmp_path, lora=lora)
    saved = Student(str(tmp_path), device="cpu")
    assert scores(saved) == pytest.approx(scores(Student.live(model)), abs=1e-4)


def test_the_runs_template_words_the_prompts(run):
    folder, model = run
    config = yaml.safe_load((folder / "config.yaml").read_text())
    template = folder / "loud.jinja"
    template.write_text("{% for m in messages %}{{ m.content | upper }}!{% endfor %}")
    plain = scores(Student(str(folder), device="cpu"))
    config["data"]["init_args"] = {"template": str(template), "template_arguments": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    try:
        loud = scores(Student(str(folder), device="cpu"))
        expected = scores(Student.live(model, template=str(template)))
    finally:
        config["data"]["init_args"] = {}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert loud == pytest.approx(expected, abs=1e-4)
    assert loud[0] == pytest.approx(plain[0], abs=1e-4)  # a text, in no template
    assert loud[1] != pytest.approx(plain[1], abs=1e-4)


def test_what_is_no_student_is_refused_in_one_sentence(run, tmp_path):
    folder, _ = run
    (tmp_path / "config.yaml").write_text("model: {}")
    with pytest.raises(KDError, match="no whole checkpoint yet"):
        Student(str(tmp_path)).open()
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes((folder / "checkpoints" / "step000003.ckpt").read_bytes())
    with pytest.raises(KDError, match="does not lie in a run's folder"):
        Student(str(alone)).open()
    with pytest.raises(KDError, match="neither a run's folder"):
        Student(str(folder / "checkpoints")).open()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["student"]["config"]["num_hidden_layers"] = 3
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    for part in (folder / "checkpoints").glob("step000003.ckpt*"):
        (other / "checkpoints" / part.name).write_bytes(part.read_bytes())
    with pytest.raises(KDError, match="of another student"):
        Student(str(other), device="cpu").open()
