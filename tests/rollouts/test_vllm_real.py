"""VLLMServer with a vLLM that really runs (`make vllm`): drawing, training, new weights, faults.

In float32 on a processor, with random students of heads of 32 and a head of their own: vLLM's build
for processors takes no new weights of a tied head, which is shown here too.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.sync_rollout_weights import SyncRolloutWeights
from kd_lightning.errors import KDError
from kd_lightning.models.spec import StudentSpec
from kd_lightning.rollouts.from_student import FromStudent
from kd_lightning.rollouts.vllm_server import VLLMServer
from kd_lightning.teachers import LocalTeacher, ServerTeacher
from kd_lightning.teachers.generator import GeneratorError, Kind, Request
from kd_lightning.types import Prompt, Sampling
from tests.rollouts import kit, served
from tests.rollouts.test_rollouts import logprobs
from tests.teachers import servers

pytestmark = pytest.mark.slow

CLOSE = 1e-4
"""float32 of two implementations, in nats a token."""
LONG = "abcdefgh" * 20
"""More than a block (128) of vLLM's cache on a processor."""


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """Folders of two students that differ in all weights."""
    home = tmp_path_factory.mktemp("students")
    return served.save(home / "one", 1), served.save(home / "two", 2)


@pytest.fixture(scope="module")
def url(students, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    how = ("--served-model-name", "student")
    with servers.vllm(students[0], log, *how, develop=True) as (url, _):
        yield url


@pytest.fixture
def engine(url, students):
    """Brought the first student's weights."""
    made = VLLMServer(url, retries=5)
    made.load(Path(students[0]))
    made.loaded = 0
    yield made
    made.close()


def same(found, want):
    assert kit.texts(found) == kit.texts(want)
    torch.testing.assert_close(found.behaviour, want.behaviour, atol=CLOSE, rtol=0)
    assert [a.finished for a in found.answers] == [a.finished for a in want.answers]


# ---- drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["engine", "student"])
def test_greedy_answers_and_their_log_probabilities_are_those_of_generate(engine, students, whose):
    engine.logprobs = whose
    how = Sampling(40)
    rows = kit.batch(kit.examples(24), fillers=1)
    found = served.roll(FromStudent(sampling=how, engine=engine), rows, students[0])
    want = served.roll(FromStudent(sampling=how), rows, students[0])
    same(found, want)
    ends = {a.tokens[-1] for a in want.answers if a.finished}
    assert ends == {2, served.OTHER_END}, "both ends, and answers that are cut"
    assert not all(a.finished for a in want.answers)
    other = served.roll(FromStudent(sampling=how), rows, students[1])
    with pytest.raises(AssertionError):  # the control
        same(found, other)


def test_drawn_ones_have_seeds_of_their_own_and_are_told_at_temperature_1(engine, students):
    how = Sampling(10, temperature=0.7, top_p=0.9, top_k=20)
    rollout = FromStudent(3, how, engine=engine)
    found = served.roll(rollout, kit.batch(), students[0])
    again = served.roll(rollout, kit.batch(), students[0])
    other = served.roll(rollout, kit.batch(), students[0], seed=6)
    assert kit.texts(found) == kit.texts(again) != kit.texts(other)
    assert all(len(set(answers)) > 1 for answers in kit.texts(found).values())
    told = logprobs(kit.model(students[0]), found)
    torch.testing.assert_close(found.behaviour.double(), told, atol=CLOSE, rtol=0)


def test_token_prompts_get_no_second_beginning_and_texts_theirs(url, engine, students):
    """The students' tokenizer begins a text with <s>, and their prompts of ids have it already."""
    local = LocalTeacher(students[0], dtype="float32", attention="sdpa", template="plain")
    remote = ServerTeacher(
        url, "student", tokenizer_path=students[0], template="plain", api="completions",
        extra={"return_token_ids": True},
    )  # fmt: skip
    prompts = [Prompt.user("ab"), Prompt.text("cde"), Prompt.user("fgh")]
    asked = [Request(Kind.GENERATE, p, Sampling(12), logprobs=True) for p in prompts]
    for found, want in zip(remote.ask(asked), local.ask(asked), strict=True):
        (one,), (other,) = found.completions, want.completions
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=CLOSE)
    for one, other in zip(
        remote.score(prompts, ["x y"] * 3), local.score(prompts, ["x y"] * 3), strict=True
    ):
        assert one.logprobs == pytest.approx(other.logprobs, abs=CLOSE)
    remote.close()


# ---- new weights ------------------------------------------------------------------------------


def test_the_next_draw_uses_the_new_weights_and_nothing_that_was_cached(engine, students, url):
    one = kit.Example.dialogue(id="long", user=LONG, assistant="c")
    rows, rollout = kit.batch([one, *kit.examples()]), FromStudent(sampling=kit.GREEDY)
    want = [served.roll(rollout, rows, folder) for folder in students]
    assert kit.texts(want[0]) != kit.texts(want[1])
    drawing = FromStudent(sampling=kit.GREEDY, engine=engine)
    same(served.roll(drawing, rows, students[0]), want[0])
    engine.load(Path(students[1]))
    same(served.roll(drawing, rows, students[1]), want[1])
    engine.load(Path(students[0]))
    same(served.roll(drawing, rows, students[0]), want[0])
    told(url, "/collective_rpc",
         {"method": "reload_weights", "kwargs": {"weights_path": students[1]}})  # fmt: skip
    with pytest.raises(AssertionError):  # the control: nothing else forgets the prompt
        same(served.roll(drawing, kit.batch([one]), students[1]),
             served.roll(rollout, kit.batch([one]), students[1]))  # fmt: skip


def told(url, path, body=None):
    data = json.dumps(body or {}).encode()
    how = {"Content-Type": "application/json"}
    asked = urllib.request.Request(url.removesuffix("/v1") + path, data, how)
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.parametrize("every", [1, 2])
def test_a_fit_with_it_is_the_fit_with_generate(url, students, tmp_path, every):
    """Losses to 2e-4 over five steps in which each answer changes; stale ones say so."""
    spec, teacher = StudentSpec(path=students[0]), students[1]
    drawn = FromStudent(sampling=kit.GREEDY, engine=VLLMServer(url))
    said, lost, _ = served.fit(
        teacher, tmp_path / "served", drawn, SyncRolloutWeights(every), steps=5, spec=spec
    )  # fmt: skip
    here = FromStudent(sampling=kit.GREEDY)
    want, lost_here, _ = served.fit(teacher, tmp_path / "here", here, steps=5, spec=spec)
    ages = served.column(tmp_path / "served", "train/rollout/stale_steps")
    assert max(served.column(tmp_path / "served", "train/rollout/engine_apart")) < CLOSE
    assert len({str(sorted(step.values())) for step in want}) == 5
    if every == 1:
        assert said == want and ages == [0.0] * 5
        assert lost == pytest.approx(lost_here, abs=2e-4)
    else:
        assert said[0] == want[0] and said[1] != want[1] and ages == [0.0, 1.0, 0.0, 1.0, 0.0]
        assert lost[1] != pytest.approx(lost_here[1], abs=2e-4), "the tolerance tells nothing"


# ---- what goes wrong --------------------------------------------------------------------------


MANY = Sampling(200, temperature=1.0)


def when_asked(engine, act):
    """Do it as soon as the engine has sent further requests."""
    counts, before = engine._caller.counts, engine._caller.counts["requests"]

    def wait():
        while counts["requests"] < before + 8:
            time.sleep(0.001)
        act()

    threading.Thread(target=wait, daemon=True).start()


def test_answers_that_the_server_broke_off_are_asked_again(engine, students, url):
    """Another one's pause ends what is being drawn with a 200 and the word abort."""
    rollout, rows = FromStudent(16, MANY, engine=engine), kit.batch(kit.examples(24))
    want = served.roll(rollout, rows, students[0])

    def disturb():
        for _ in range(20):  # until one comes while something is being drawn
            told(url, "/pause?mode=abort")
            told(url, "/resume")
            time.sleep(0.02)
            if engine._caller.counts["retries"]:
                return

    when_asked(engine, disturb)
    same(served.roll(rollout, rows, students[0]), want)
    assert engine._caller.counts["retries"] > 0, "nothing was broken off"


class Kill(Callback):
    """Ends the server while it draws for the third step."""

    def __init__(self, process, engine):
        self.process, self.engine = process, engine

    def on_train_batch_start(self, trainer, module, batch, number):
        if trainer.global_step == 2:
            when_asked(self.engine, self.process.kill)


def test_faults_of_a_server(students, tmp_path):
    """One after the other on one server, which does not survive the last."""
    tied = served.save(tmp_path / "tied", 3, tied=True)
    how = ("--served-model-name", "student")
    with servers.vllm(tied, tmp_path / "log", *how, develop=True) as (url, process):
        spec, teacher = StudentSpec(path=tied), students[1]

        engine = VLLMServer(url, retries=1)

        def fit(name, rollout, *callbacks):
            served.fit(teacher, tmp_path / name, rollout, *callbacks, steps=9, spec=spec)

        # the build for processors packs the head once; a tied one is told of no new weights, and
        # what that does to its log-probabilities grows with the steps
        with pytest.raises(KDError, match=r"did not take all weights .* keeps a tied head"):
            fit("tied", FromStudent(sampling=kit.GREEDY, engine=engine), SyncRolloutWeights())
        apart = served.column(tmp_path / "tied", "train/rollout/engine_apart")
        assert apart[0] < CLOSE < 100 * CLOSE < apart[1] < apart[-1]

        with pytest.raises(GeneratorError, match=r"status 500\).*no whole weights.* see /"):
            engine.load(tmp_path / "nothing")
        engine.load(Path(tied))  # whole weights mend it
        engine.close()

        begun = time.monotonic()
        drawn = FromStudent(8, MANY, engine=engine)
        with pytest.raises(GeneratorError, match=r"draws no answer|cannot be reached") as error:
            fit("killed", drawn, SyncRolloutWeights(limit=None), Kill(process, engine))
        assert time.monotonic() - begun < 120 and process.poll() is not None
        assert "\n" not in str(error.value)
        learned = served.column(tmp_path / "killed", "train/loss")
        assert len(learned) == 2, "a step learned from what a dead server said"
