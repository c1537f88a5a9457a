"""Steps as a configuration names them: short class names, all arguments, help."""

import pytest
from jsonargparse import ArgumentParser

from kd_lightning import elicit
from kd_lightning.curate.dedup import DedupExact
from kd_lightning.elicit.conversation import Agent
from kd_lightning.elicit.executors import Calculator, Lookup
from kd_lightning.knowledge.step import Step
from kd_lightning.types import Sampling

FULL = """
steps:
- class_path: Rationale
  init_args:
    generator: student
    n: 4
    keep: each
    sampling: {temperature: 0.9, max_new_tokens: 64}
    draw: {tone: [dry, warm]}
    shots: {count: 2, select: similar}
- class_path: FromPool
  init_args:
    target: 10
    filters:
    - class_path: DedupExact
- class_path: BestOf
  init_args:
    scorer:
      class_path: Rate
      init_args: {field: candidates, aspects: {truth: is it so}}
- class_path: Converse
  init_args:
    opens: prompt
    agents:
      user: {template: user_simulator, role: user, generator: student}
      assistant: {template: assistant, role: assistant}
- class_path: WithTools
  init_args:
    tools:
    - class_path: kd_lightning.elicit.executors.Calculator
    - class_path: kd_lightning.elicit.executors.Lookup
      init_args: {table: {Rome: Italy}}
- class_path: Accepted
  init_args:
    hint: rationalise
    filters:
    - class_path: DedupExact
      init_args: {field: answer}
- class_path: Evolve
  init_args: {rounds: 2, operators: {evolve_breadth: 2.0, evolve_deepen: 1}}
- class_path: Revise
  init_args:
    template: constitutional_critique
    revision: constitutional_revise
    draw: {principle: principles}
    attempts: 2
"""


def parsed(text):
    parser = ArgumentParser()
    parser.add_argument("--steps", type=list[Step])
    return parser.instantiate_classes(parser.parse_string(text)).steps


def test_a_configuration_names_everything():
    rationale, pool, best, talk, tools, accepted, evolve, revise = parsed(FULL)
    assert rationale.sampling == Sampling(temperature=0.9, max_new_tokens=64)
    assert (rationale.generator, rationale.n, rationale.template) == ("student", 4, "rationale")
    assert rationale.shots.select == "similar" and rationale.draw == {"tone": ["dry", "warm"]}
    assert isinstance(pool.filters[0], DedupExact)
    assert best.scorer.aspects == {"truth": "is it so"} and best.generator == "student"
    assert talk.agents["user"] == Agent("user_simulator", "user", "student")
    assert [type(tool) for tool in tools.tools] == [Calculator, Lookup]
    assert accepted.hint == "rationalise" and accepted.filters[0].field == "answer"
    assert evolve.operators == {"evolve_breadth": 2.0, "evolve_deepen": 1.0}
    assert revise.draw == {"principle": "principles"} and revise.attempts == 2
    assert best.needs().keys() == {"student", "teacher"}


@pytest.mark.parametrize("name", elicit.__all__)
def test_each_is_known_by_its_name_and_documents_its_arguments(name, capsys):
    parser = ArgumentParser()
    parser.add_subclass_arguments(Step, "step")
    with pytest.raises(SystemExit):
        parser.parse_args([f"--step.help={name}"])
    told = capsys.readouterr().out
    bare = ("Canary", "Converse", "Debate", "Evolve", "Features")
    assert "--step.template" in told or name in bare
    assert "As for" not in told, "arguments that are handed on stand in the help by name"


def test_an_unknown_argument_is_refused():
    with pytest.raises(SystemExit):
        parsed("steps:\n- class_path: Answer\n  init_args: {temperature: 1}\n")
