"""Engines that draw elsewhere: the loop of drawing, training and bringing weights, on a double.

What is shown is that our side says and reads what vLLM 0.32.0 does, in the right order, and that
the weights arrive; test_vllm_real.py shows the same with vLLM itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks.sync_rollout_weights import SyncRolloutWeights
from kd_lightning.errors import KDError
from kd_lightning.models.spec import LoraSpec, StudentSpec
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.from_teacher import FromTeacher
from kd_lightning.rollouts.mixed import Mixed
from kd_lightning.rollouts.speculative import Speculative
from kd_lightning.rollouts.teacher_mixed import TeacherMixed
from kd_lightning.rollouts.vllm_colocated import VLLMColocated
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers.generator import GeneratorError
from kd_lightning.types import IGNORE
from tests.conftest import ROOT
from tests.rollouts import kit, vllm_double
from tests.rollouts.served import column, fit
from tests.rollouts.test_rollouts import logprobs


@pytest.fixture
def server():
    """Serves other weights than the student's until it is told."""
    made = vllm_double.Server(kit.folders()[1])
    with vllm_double.serving(made) as url:
        yield made, url


def engine(url, **more):
    found = VLLMServer(url, retries=1, **more)
    found.loaded = 0
    return found


# ---- drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["engine", "student"])
def test_greedy_answers_and_their_log_probabilities_are_those_of_generate(server, whose):
    made, url = server
    made.engine.reload(kit.folders()[0])
    rollout = FromStudent(sampling=kit.GREEDY, engine=engine(url, logprobs=whose))
    found = kit.roll(rollout, kit.batch(fillers=1))
    want = kit.roll(FromStudent(sampling=kit.GREEDY), kit.batch(fillers=1))
    assert kit.texts(found) == kit.texts(want)
    torch.testing.assert_close(found.behaviour, want.behaviour, atol=1e-5, rtol=0)
    assert [a.finished for a in found.answers] == [a.finished for a in want.answers]
    rollout.engine.close()


def test_log_probabilities_of_stale_weights_are_the_engines_or_the_students(server):
    """The server draws with the teacher's weights: only `student` says what the student thinks."""
    _, url = server
    student, teacher = kit.pair()
    for whose, model in (("engine", teacher.model), ("student", student)):
        rollout = FromStudent(sampling=kit.SHORT, engine=engine(url, logprobs=whose))
        made = kit.roll(rollout, kit.batch())
        torch.testing.assert_close(
            made.behaviour.double(), logprobs(model, made), atol=2e-5, rtol=0
        )
        rollout.engine.close()


def test_every_draw_has_a_seed_of_its_own_wherever_it_is(server):
    made, url = server
    chosen = kit.examples()
    rollout = FromStudent(3, kit.SHORT, engine=engine(url))
    whole = kit.texts(kit.roll(rollout, kit.batch(chosen)))
    parts = kit.texts(kit.roll(rollout, kit.batch(chosen[3:])))
    parts |= kit.texts(kit.roll(rollout, kit.batch(chosen[:3])))
    assert parts == whole
    assert all(len(set(answers)) > 1 for answers in whole.values())
    seeds = {body["seed"] for body in made.bodies}
    assert len(seeds) == 18 and all(0 <= seed < 2**31 for seed in seeds)
    told = made.bodies[0]
    assert told["return_token_ids"] and told["max_tokens"] == 10 and told["temperature"] == 1.0
    assert told["stop_token_ids"] == [2] and all(isinstance(i, int) for i in told["prompt"])
    rollout.engine.close()


# ---- the loop ---------------------------------------------------------------------------------


def test_the_next_draw_uses_the_new_weights(server, tiny_teacher, tmp_path):
    made, url = server
    drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
    said, lost, run = fit(tiny_teacher, tmp_path / "served", drawn, SyncRolloutWeights())
    want, lost_here, _ = fit(tiny_teacher, tmp_path / "here", FromStudent(sampling=kit.GREEDY))
    assert said == want
    assert lost == pytest.approx(lost_here, abs=1e-5)
    assert len({str(sorted(step.values())) for step in said}) == 3
    a_sync = ["pause", "reload_weights", "reset_prefix_cache", "resume"]
    others = [call for call in made.calls if call != "completions"]
    assert others == a_sync * 4 and made.calls[:4] == a_sync
    folders = list((tmp_path / "served/rollout_weights").iterdir())
    assert [f.name for f in folders] == ["step-3"], "former weights were left behind"
    assert drawn.engine._caller is None, "connections were left open"
    written = made.engine.model.state_dict()
    for name, value in run.lightning_module.student.transformer.state_dict().items():
        torch.testing.assert_close(value.double(), written[name], msg=name)


def test_weights_every_second_step_are_stale_and_say_so(server, tiny_teacher, tmp_path):
    _, url = server
    drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
    said, _, _ = fit(tiny_teacher, tmp_path / "served", drawn, SyncRolloutWeights(2))
    want, _, _ = fit(tiny_teacher, tmp_path / "here", FromStudent(sampling=kit.GREEDY))
    assert said[0] == want[0]
    assert said[1] != want[1], "the second drawing has the weights of the first"
    assert column(tmp_path / "served", "train/rollout/stale_steps") == [0.0, 1.0, 0.0]


def test_adapters_are_merged_on_the_way(server, tiny_teacher, tmp_path):
    _, url = server
    spec = StudentSpec(path=kit.folders()[0], lora=LoraSpec(rank=4))
    drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
    said, _, run = fit(tiny_teacher, tmp_path / "a", drawn, SyncRolloutWeights(), spec=spec)
    want, _, _ = fit(tiny_teacher, tmp_path / "b", FromStudent(sampling=kit.GREEDY), spec=spec)
    assert said == want
    assert any("lora" in name for name, _ in run.lightning_module.student.named_parameters())


def test_an_engine_in_the_process_sleeps_between_drawings(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", vllm_double.MODULE)
    drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMColocated(settings={"dtype": "float32"}))
    said, _, _ = fit(tiny_teacher, tmp_path / "served", drawn, SyncRolloutWeights())
    want, _, _ = fit(tiny_teacher, tmp_path / "here", FromStudent(sampling=kit.GREEDY))
    assert said == want
    made = vllm_double.LLM.made[-1]
    assert made.awake == set() and len(made.engine.folders) == 4
    assert made.settings == {
        "gpu_memory_utilization": 0.3, "enable_sleep_mode": True, "logprobs_mode": "raw_logprobs",
        "dtype": "float32",
    }  # fmt: skip


@pytest.mark.slow
def test_a_sharded_student_is_put_together_for_the_server(server, tiny_teacher, tmp_path):
    _, url = server
    (tmp_path / "ranks").mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
        "-m", "tests.rollouts.served_ranks", kit.folders()[0], tiny_teacher,
        str(tmp_path / "ranks"), url,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"ranks/said-{r}.json").read_text()) for r in (0, 1)]
    want, lost, _ = fit(tiny_teacher, tmp_path / "here", FromStudent(sampling=kit.GREEDY))
    for step, mine, other in zip(json.loads(json.dumps(want)), *(r["said"] for r in ranks),
                                 strict=True):  # fmt: skip
        spoken = mine | other
        spoken.pop("", None)
        assert spoken == step
    for rank in ranks:
        assert rank["sharded"] and rank["losses"] == pytest.approx(lost, abs=1e-5)


# ---- what goes wrong --------------------------------------------------------------------------


def test_an_answer_that_was_broken_off_is_asked_again(server):
    made, url = server
    made.broken = 1
    rollout = FromStudent(sampling=kit.GREEDY, engine=engine(url))
    found = kit.roll(rollout, kit.batch())
    made.broken = 0
    assert kit.texts(found) == kit.texts(kit.roll(rollout, kit.batch()))
    made.broken = 10**6
    with pytest.raises(GeneratorError, match="draws no answer: the server broke the answer off"):
        kit.roll(rollout, kit.batch(kit.examples(1)))
    rollout.engine.close()


def test_a_server_without_development_mode_is_named(tiny_teacher, tmp_path):
    made = vllm_double.Server(kit.folders()[1], dev=False)
    with vllm_double.serving(made) as url:
        drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
        with pytest.raises(GeneratorError, match="VLLM_SERVER_DEV_MODE=1"):
            fit(tiny_teacher, tmp_path, drawn, SyncRolloutWeights())


def test_a_server_that_is_not_there_is_named(tiny_teacher, tmp_path):
    drawn = FromStudent(engine=VLLMServer("http://127.0.0.1:9/v1", connect_seconds=1))
    with pytest.raises(GeneratorError, match="does not take new weights"):
        fit(tiny_teacher, tmp_path, drawn, SyncRolloutWeights())


def test_a_folder_that_cannot_be_read_is_told(server, tmp_path):
    _, url = server
    found = engine(url)
    with pytest.raises(GeneratorError, match=r"status 500\): Call to .* let its machine see /"):
        found.load(tmp_path / "nothing")
    found.close()


def test_a_cache_of_prompts_that_stays_is_told(server, tmp_path):
    made, url = server
    made.keeps = True
    found = engine(url)
    with pytest.raises(GeneratorError, match="no-enable-prefix-caching"):
        found.load(Path(kit.folders()[0]))
    found.close()


def test_an_engine_that_keeps_other_weights_than_it_was_given_is_refused(
    server, tiny_teacher, tmp_path, monkeypatch
):
    """It says that it took them; only what it draws shows that it did not."""
    made, url = server
    reload = made.engine.reload
    monkeypatch.setattr(made.engine, "reload", lambda folder: None)
    drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
    with pytest.raises(KDError, match=r"differ from the student's by .* did not take all weights"):
        fit(tiny_teacher, tmp_path / "a", drawn, SyncRolloutWeights())
    assert drawn.engine._caller is None, "connections were left open"
    fit(tiny_teacher, tmp_path / "b", drawn, SyncRolloutWeights(limit=None), steps=1)
    monkeypatch.setattr(made.engine, "reload", reload)
    drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
    fit(tiny_teacher, tmp_path / "c", drawn, SyncRolloutWeights(), steps=5)
    told = column(tmp_path / "c", "train/rollout/engine_apart")
    assert len(told) == 3 and max(told) < 1e-4, "not after 1, 2 and 4 times"


def test_weights_that_nobody_brought_are_refused(tiny_teacher, tmp_path):
    with pytest.raises(KDError, match="add the callback SyncRolloutWeights"):
        fit(tiny_teacher, tmp_path, FromStudent(engine=VLLMServer("http://127.0.0.1:9/v1")))
    with pytest.raises(KDError, match="leave the callback out"):
        fit(tiny_teacher, tmp_path, FromStudent(sampling=kit.GREEDY), SyncRolloutWeights())


@pytest.mark.parametrize("cls", [FromTeacher, TeacherMixed])
def test_it_cannot_draw_the_teachers_words(cls):
    with pytest.raises(KDError, match="has the student's weights alone"):
        Mixed(0.5, cls(engine=VLLMServer("http://127.0.0.1:9/v1"))).check(kit.pair()[1])
    Speculative(engine=VLLMServer("http://127.0.0.1:9/v1")).check(kit.pair()[1])


def test_without_vllm_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(KDError, match=r"kd-lightning\[vllm\]"):
        VLLMColocated().load(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VLLMServer("http://127.0.0.1:9/v1", concurrency=0),
        lambda: VLLMServer("127.0.0.1:9"),
        lambda: VLLMColocated(memory_share=1.0),
        lambda: SyncRolloutWeights(0),
        lambda: SyncRolloutWeights(limit=0),
    ],
)
def test_what_cannot_be_is_refused(make):
    with pytest.raises(KDError):
        make()


def test_truncated_ones_are_flagged(server):
    made, url = server
    made.engine.reload(kit.folders()[0])
    rollout = FromStudent(3, kit.SHORT, mask_truncated=True, engine=engine(url))
    found = kit.roll(rollout, kit.batch())
    cut = torch.tensor([not a.finished for a in found.answers])
    assert cut.any() and found.weights[cut].sum() == 0
    assert all(answer.finished == (answer.tokens[-1] == 2) for answer in found.answers)
    assert (found.targets[~cut] != IGNORE).any(1).all()
    rollout.engine.close()
