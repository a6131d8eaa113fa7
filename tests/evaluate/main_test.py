"""The program: from a command line to a table, with tiny models."""

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import Executor

import jax
import pytest

from jaxrl_mm import experiment, inputs, run, sharding, weights
from jaxrl_mm.data import sources
from jaxrl_mm.data import tokenizer as tok
from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import __main__ as program
from jaxrl_mm.evaluate import accuracy
from jaxrl_mm.evaluate.accuracy import EvaluationConfig
from jaxrl_mm.evaluate.run import RESULTS, at_once
from jaxrl_mm.experiment import Experiment
from jaxrl_mm.models import vlm
from jaxrl_mm.models.config import DecoderConfig, ModelConfig, digits
from jaxrl_mm.models.huggingface import text
from jaxrl_mm.models.huggingface.save import save_params
from jaxrl_mm.rewards import format as form
from jaxrl_mm.train import sft
from jaxrl_mm.train.sft import SftConfig

pytestmark = pytest.mark.usefixtures("quick_compile")

RECORDS = {
  "aime_2024": [{"ID": "2024-I-1", "Problem": "1+1?", "Answer": 2}] * 2,
  "vl_rewardbench": [
    {
      "id": "RLAIF-V-1",
      "query": "q",
      "response": ["good", "bad"],
      "human_ranking": [0, 1],
    }
  ],
}
NAMES = {"aime_2024": "aime_2024_problems", "vl_rewardbench": "test"}


class Here(Executor):
  """Grades in this process, as fast as the tests need it."""

  submit = staticmethod(at_once)


@pytest.fixture
def here(monkeypatch):
  monkeypatch.setattr(program, "_graders", Here)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Two benchmarks, each in the folder of its name."""
  folder = tmp_path_factory.mktemp("data")
  for name, rows in RECORDS.items():
    (folder / name).mkdir()
    path = folder / name / f"{NAMES[name]}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return folder


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(1, 1, 1, jax.devices()[:1])


@pytest.fixture(autouse=True)
def one_device(mesh, monkeypatch):
  monkeypatch.setattr(program.sharding, "make_mesh", lambda *sizes: mesh)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, mesh):
  """A run of one step of the demo, and what it says of held-out questions."""
  config = SftConfig(steps=1, batch=16, micro_batch=16)
  e = Experiment(model=digits(), stages=("sft",), sft=config)
  workdir = tmp_path_factory.mktemp("runs") / "demo"
  experiment.claim_folder(workdir, e)
  setting = inputs.make_setting(e, mesh)
  source = sources.Digits("test", size=16, seed=0)
  with jax.set_mesh(mesh):
    first = weights.initial(e, mesh)
    params = sft.run(setting, config, first, source, workdir / "sft")
    evaluate = accuracy.make_evaluator(
      setting,
      EvaluationConfig(size=16, batch=16),
      source,
      run.rules({"answer": 1.0, "format": 0.0}),
    )
    return workdir, evaluate(params)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  """A tiny text model as on the hub."""
  decoder = DecoderConfig(
    layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp=32, vocab=64
  )
  model = ModelConfig(vision=None, decoder=decoder, dtype="float32")
  folder = tmp_path_factory.mktemp("hub") / "tiny"
  params = jax.jit(lambda key: vlm.init(model, key))(jax.random.key(0))
  table = text.table(model, {"model.embed_tokens.weight", "lm_head.weight"})
  save_params(params, table, folder, like=None, dtype="float32")
  description = {
    "model_type": "qwen2",
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "vocab_size": 64,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
  }
  (folder / "config.json").write_text(json.dumps(description))
  tok.build(sources.digits_texts()).save_pretrained(folder)
  return folder


def evaluate(*words):
  return program.evaluate(program.parse([str(word) for word in words]))


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_digits_from_a_run_to_a_table(trained, tmp_path, capsys):
  """The whole path; greedy answers are those the run was measured with."""
  workdir, held_out = trained
  command = (
    *("--model", workdir, "--benchmark", "digits", "--limit", 16),
    *("--batch", 16, "--out", tmp_path),
  )
  tables = evaluate(*command)
  ours = tables["digits"]["demo"]
  assert ours["overall"] == pytest.approx(100 * held_out["answer"])
  _, *rows = lines(tmp_path / "digits" / RESULTS)
  assert [row["row"] for row in rows] == list(range(16))
  texts = [row["responses"][0] for row in rows]
  assert form.r1(texts, texts).mean() == held_out["format"]
  assert json.loads((tmp_path / "table.json").read_text()) == tables
  assert "| demo |" in (tmp_path / "table.md").read_text()
  assert "digits 16/16" in capsys.readouterr().out
  # Again: everything is there.
  before = (tmp_path / "digits" / RESULTS).stat().st_mtime_ns
  assert evaluate(*command) == tables
  assert (tmp_path / "digits" / RESULTS).stat().st_mtime_ns == before


def test_several_benchmarks_runs_and_a_judge(
  published, data, tmp_path, here, monkeypatch
):
  asked = []

  def judge(prompts):
    asked.extend(prompts)
    return ["same"] * len(prompts)

  monkeypatch.setattr(program, "make_judge", lambda args: judge)
  tables = evaluate(
    *("--model", published, "--data", data, "--out", tmp_path),
    *("--benchmark", "aime_2024", "vl_rewardbench"),
    *("--runs", 2, "--temperature", 1, "--ks", 2, "--both-orders"),
    *("--max-tokens", 4, "--batch", 2, "--prompt-tokens", 2048),
    *("--judge", "http://localhost/v1"),
  )
  aime, pairs = tables["aime_2024"], tables["vl_rewardbench"]
  # A random model says nothing right, and a judge like this one believes it.
  assert aime["tiny"]["overall"] == 0
  assert aime["tiny, by the judge"]["overall"] == 100
  # It is asked of the answers that the paper had judged, and of no pair.
  assert len(asked) == 4 and "1+1?" in asked[0]
  assert pairs["tiny"]["orders/consistent"] == 0
  assert pairs["R1-Reward"]["overall"] == 71.92
  _, *rows = lines(tmp_path / "vl_rewardbench" / RESULTS)
  assert len(rows) == 2 and len(rows[0]["responses"]) == 2


@pytest.mark.parametrize(
  "words, message",
  [
    (["--benchmark", "mmlu"], "no benchmark 'mmlu'; known are mmmu, .*digits"),
    (["--benchmark", "gpqa"], "needs gpqa_diamond.csv.*Idavidrein/gpqa"),
    (
      ["--benchmark", "digits", "mmmu", "--data", "nowhere"],
      r"needs \*/validation\*.parquet and nowhere has none; download MMMU/MMMU",
    ),
    (["--benchmark", "digits", "--runs", "2"], "temperature 0"),
    (["--benchmark", "digits", "--ks", "3"], "--ks has 3"),
  ],
)
def test_mistakes_are_found_before_the_model_is_read(
  words, message, monkeypatch
):
  monkeypatch.setattr(program, "load_model", None)
  with pytest.raises(InputError, match=message):
    evaluate("--model", "nowhere", *words)


def test_a_folder_that_is_no_model(tmp_path):
  with pytest.raises(InputError, match="config.json cannot be read"):
    evaluate("--model", tmp_path, "--benchmark", "digits", "--limit", 1)


def test_the_judge_is_the_endpoint_that_is_named():
  args = program.parse(
    "--model m --benchmark digits --judge http://localhost/v1 "
    "--judge-model o4".split()
  )
  judge = program.make_judge(args)
  assert (judge.base_url, judge.model) == ("http://localhost/v1", "o4")


def test_a_scalar_model_answers_no_questions(published, mesh):
  args = program.parse(["--model", str(published), "--benchmark", "digits"])
  work = program.read_benchmarks(args)
  e = program.describe(args)
  model = dataclasses.replace(e.model, value_head=True)
  setting = inputs.make_setting(dataclasses.replace(e, model=model), mesh)
  with pytest.raises(InputError, match="is a scalar reward model"):
    program.check_model(setting, work, args)


def test_a_mistake_is_one_sentence():
  done = subprocess.run(
    [sys.executable, "-m", "jaxrl_mm.evaluate", "--model", "m"]
    + ["--benchmark", "mmlu"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert done.stderr.startswith("error: there is no benchmark 'mmlu'; known")
  assert "Traceback" not in done.stderr
