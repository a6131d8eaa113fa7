"""The page of a run: its data by hand, and the page itself in a browser."""

import base64
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxrl_mm import report
from jaxrl_mm.errors import InputError

NAN, INF = float("nan"), float("inf")
GRADED = {"answer": 1.0, "format": 1.0}


def _png(width, height):
  """Noise, which no format makes small."""
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3))
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()


def _sample(step, group, answer, replayed=False, **other):
  sample = {
    "step": step,
    "group": group,
    "prompt": "What is the sum?",
    "completion": "<think>1+2=3</think><answer>3</answer>",
    "terms": {"answer": answer, "format": 1.0},
    "reward": answer + 0.1,
    "advantage": answer - 0.5,
    "replayed": replayed,
  }
  return sample | other


def _write_run(folder, samples=(), steps=50, seed=0):
  """A run of two stages as the trainer leaves it."""
  config = {"seed": seed, "stages": ["sft", "policy"], "policy": {"steps": 50}}
  held_out = {"accuracy": 0.5, "effective": None, "steps": steps}
  summary = {"stages": {"sft": held_out, "policy": {"accuracy": 0.75}}}
  lines = [
    {"step": i, "seconds": 2.0 * i, "loss": 1 / i, "answer": i / 100, "odd": 7}
    | {"unix_seconds": 1.8e9 + i, "far_seconds": 1.795e9}
    for i in range(1, steps + 1)
  ]
  for stage in ("policy", "sft"):
    (folder / stage).mkdir(parents=True)
    _write_lines(folder / stage / "metrics.jsonl", lines)
  _write_lines(folder / "policy" / "samples.jsonl", samples)
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "summary.json").write_text(json.dumps(summary))
  return folder


def _write_lines(path, objects):
  path.write_text("".join(json.dumps(o) + "\n" for o in objects))


# ------------------------------------------------------------------ data
def test_a_long_curve_is_means_of_equal_spans():
  lines = [{"step": i, "x": float(i)} for i in range(1, 8)]
  assert report.curve(lines, "x", points=3) == {
    "steps": [3, 6, 7],
    "values": [2, 5, 7],
  }


def test_values_that_are_not_finite_are_left_out():
  values = (1.0, NAN, INF, 4.0)
  lines = [{"step": i, "x": x} for i, x in enumerate(values)] + [{"step": 9}]
  assert report.curve(lines, "x", points=9) == {
    "steps": [0, 3],
    "values": [1, 4],
  }


def test_stages_stand_in_the_order_they_ran(tmp_path):
  run = report.read_run(_write_run(tmp_path / "demo"))
  assert list(run.stages) == ["sft", "policy"]
  assert run.name == "demo"


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
  path = _write_run(tmp_path, steps=3) / "sft" / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 4, "lo')
  steps = [line["step"] for line in report.read_run(tmp_path).stages["sft"][0]]
  assert steps == [1, 2, 3]


def test_related_metrics_share_a_chart_and_unknown_ones_come_last():
  lines = [
    {"step": 1, "seconds": 1, "odd": 1, "format": 1, "answer": 0, "reward": 2}
  ]
  run = report.Run("a", {}, {}, {"policy": report.Stage(lines, [])})
  charts = report.panels([run], "policy", 9)
  shown = [[chart["title"], chart["known"]] for chart in charts]
  assert shown == [["Reward", 1], ["Accuracy and form", 1], ["odd", 0]]
  labels = [(c["label"], c["color"]) for c in charts[1]["curves"]]
  assert labels == [("answer", 0), ("format", 1)]


@pytest.mark.parametrize(
  "name, title",
  [
    ("reward_seconds", "Time of a step"),
    ("approx_kl", "KL divergence"),
    ("blind_gap", "Log-prob lost without the picture"),
    ("blind_same", "Hallucination"),
    ("mean_length", "Completion length"),
    ("voting_15", "Accuracy and form"),
  ],
)
def test_metrics_find_their_chart(name, title):
  lines = [{"step": 1, name: 0.5}]
  run = report.Run("a", {}, {}, {"s": report.Stage(lines, [])})
  (chart,) = report.panels([run], "s", 9)
  assert chart["title"] == title


def test_runs_are_compared_metric_by_metric(tmp_path):
  folders = [_write_run(tmp_path / name, seed=s) for s, name in enumerate("ab")]
  data = report.describe([report.read_run(folder) for folder in folders])
  chart = data["stages"][1]["panels"][0]
  assert chart["title"] == "answer"
  assert [c["label"] for c in chart["curves"]] == ["a", "b"]
  assert data["config"] == [["seed", "0", "1"]]
  assert data["results"]["columns"][:2] == [["sft", 0], ["sft", 1]]


def test_results_read_as_people_write_them(tmp_path):
  results = report.results([report.read_run(_write_run(tmp_path))])
  assert results["rows"] == [
    ["accuracy", "50.0 %", "75.0 %"],
    ["steps", "50", ""],
  ]


def test_results_of_a_judge_say_what_they_are():
  judged = {"voting@15": 0.5, "first": 0.25, "length": 38.5}
  judge = report.Run("judge", {}, {"stages": {"policy": judged}}, {})
  assert report.results([judge])["rows"] == [
    ["voting@15", "50.0 %"],
    ["for response 1", "25.0 %"],
    ["tokens an answer", "38.5"],
  ]


def test_a_stage_says_how_long_it_took(tmp_path):
  data = report.describe([report.read_run(_write_run(tmp_path))])
  assert data["stages"][0]["facts"] == ["50 steps in 1 min 40 s"]


def test_groups_say_whether_all_are_right():
  samples = [
    *(_sample(1, 0, x) for x in (1.0, 1.0)),
    *(_sample(1, 1, x) for x in (0.0, 1.0)),
    *(_sample(1, 2, x) for x in (0.0, 0.0)),
    *(_sample(1, g, 1.0, replayed=True) for g in (7, 9)),
    _sample(2, 3, 1.0, terms={}),
  ]
  groups = report.rollouts(samples, 10**6)["groups"]
  kinds = [(group["kind"], len(group["rows"])) for group in groups]
  assert kinds == [
    ("right", 2),
    ("mixed", 2),
    ("wrong", 2),
    ("replayed", 2),
    ("ungraded", 1),
  ]


def test_too_many_groups_are_thinned_and_the_newest_stays():
  samples = [_sample(step, 0, 1.0) for step in range(1, 101)]
  whole = len(json.dumps(report.rollouts(samples, 10**6)["groups"]))
  thinned = report.rollouts(samples, whole // 3)
  steps = [group["step"] for group in thinned["groups"]]
  assert steps == list(range(4, 101, 4))
  assert thinned["total"] == 100


def test_repeated_special_tokens_are_counted():
  prompt = "<img>" + "<IMG_CONTEXT>" * 256 + "</img>aaaa"
  (group,) = report.rollouts([_sample(1, 0, 1.0, prompt=prompt)], 9999)[
    "groups"
  ]
  assert group["rows"][0]["prompt"] == "<img><IMG_CONTEXT>×256</img>aaaa"


def test_a_large_picture_is_made_small():
  small, large = _png(16, 8), _png(640, 320)
  samples = [_sample(i, i, 1.0, image=x) for i, x in enumerate((small, large))]
  groups = report.rollouts(samples, 10**6)["groups"]
  urls = [group["rows"][0]["picture"] for group in groups]
  assert urls[0] == f"data:image/png;base64,{small}"
  kind, _, text = urls[1].partition(",")
  assert kind == "data:image/jpeg;base64"
  assert Image.open(io.BytesIO(base64.b64decode(text))).size == (320, 160)


@pytest.mark.parametrize(
  "missing", ["summary.json", "sft", "policy/samples.jsonl"]
)
def test_missing_files_are_left_out(tmp_path, missing):
  path = _write_run(tmp_path) / missing
  shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert report.write(tmp_path) == tmp_path / "report.html"


def test_a_folder_without_a_run_is_named(tmp_path):
  with pytest.raises(InputError, match="holds no run; name the --workdir"):
    report.write(tmp_path)


def test_more_runs_than_colours_are_refused(tmp_path):
  with pytest.raises(InputError, match="9 runs are too many"):
    report.write(*[tmp_path] * 9)


def test_command_line(tmp_path, capsys):
  a, b = (str(_write_run(tmp_path / name)) for name in "ab")
  report.main([a])
  report.main([a, b])
  printed = capsys.readouterr().out.split()
  assert printed == [f"{a}/report.html", f"{a}/comparison.html"]
  with pytest.raises(SystemExit, match="error: .* holds no run"):
    report.main([str(tmp_path)])


def test_the_page_of_a_huge_run_is_below_five_megabytes(tmp_path):
  long = {"completion": "<think>" + "x" * 9000, "image": _png(100, 100)}
  samples = [_sample(s, g, 0.0, **long) for s in range(99) for g in range(8)]
  _write_run(tmp_path, samples)
  line = {f"metric_{i}": 0.123456789 for i in range(400)}
  lines = [{"step": step} | line for step in range(500)]
  _write_lines(tmp_path / "policy" / "metrics.jsonl", lines)
  assert 10**6 < report.write(tmp_path).stat().st_size < 5 * 10**6


def test_the_template_is_installed():
  project = tomllib.loads(
    (Path(__file__).parents[1] / "pyproject.toml").read_text()
  )
  files = project["tool"]["setuptools"]["package-data"]["jaxrl_mm"]
  assert report.TEMPLATE.name in files


def test_text_is_never_markup(tmp_path):
  attack = "</script><script>alert(1)</script><!--"
  samples = [_sample(1, 0, 1.0, completion=attack, prompt="{{digest}}")]
  page = report.write(_write_run(tmp_path, samples)).read_text()
  assert attack not in page and "<script>alert" not in page
  assert page.count("<script") == page.count("</script>") == 2
  assert "{{data}}" not in page and page.count("{{digest}}") == 1


# --------------------------------------------------------------- browser
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(
  CHROMIUM is None, reason="no chromium or google-chrome is installed"
)
FLAGS = (
  "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
  "--disable-background-networking --disable-component-update "
  "--disable-sync --enable-logging=stderr --dump-dom"
).split()

# Uses the page as a person does and says what was shown.
DRIVER = """
const seen = [];
const place = () => document.getElementById("place").textContent;
const count = name => document.querySelectorAll(name).length;
const look = () => seen.push(place() + " " + count(".row"));
const press = key => document.body.dispatchEvent(
  new KeyboardEvent("keydown", {key, bubbles: true}));
look();
document.getElementById("next").click(); look();
press("ArrowRight"); look();
press("ArrowLeft"); look();
document.getElementById("kind-wrong").click(); look();
document.getElementById("kind-replayed").click(); look();
seen.push(count(".badge") + " badges");
const panel = [...document.querySelectorAll("#stage-policy .panel")]
  .find(p => p.textContent.startsWith("Loss"));
const value = () => panel.querySelector("b").textContent;
const svg = panel.querySelector("svg");
const clientX = svg.getBoundingClientRect().left;
svg.dispatchEvent(new PointerEvent("pointermove", {clientX}));
seen.push(value());
svg.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
seen.push(value());
document.getElementById("theme").click();
seen.push(document.documentElement.style.colorScheme);
console.error("the end of the driver");
document.body.append(Object.assign(document.createElement("pre"),
  {id: "seen", textContent: JSON.stringify(seen)}));
"""


def _open(page, profile, fragment=""):
  """The page's elements once it is drawn, and what its console says."""
  run = subprocess.run(
    [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", page.as_uri() + fragment],
    capture_output=True,
    text=True,
    timeout=120,
  )
  drawn = run.stdout.partition("<main>")[2]
  assert drawn, run.stderr
  return run.stdout, drawn, re.findall(r"CONSOLE.*", run.stderr)


@pytest.fixture
def beacon():
  """A local server that notes who asks, and its address."""
  asked = []

  class Note(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      asked.append(self.path)

  server = http.server.HTTPServer(("127.0.0.1", 0), Note)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f"http://127.0.0.1:{server.server_port}", asked
  server.shutdown()
  thread.join()
  server.server_close()


@in_browser
def test_untrusted_text_does_nothing_in_a_browser(tmp_path, beacon):
  address, asked = beacon
  attack = (
    f"<script>document.title='owned';fetch('{address}/script')</script>"
    f"<img src='{address}/img' onerror=\"document.title='owned'\">"
  )
  image = f"x' onerror='fetch(\"{address}/attribute\")"
  sample = _sample(1, 0, 1.0, completion=attack, prompt=attack, image=image)
  sample["terms"] |= {attack: 1.0}
  page = report.write(_write_run(tmp_path / "<b>run", [sample]))
  whole, drawn, console = _open(page, tmp_path / "profile")
  assert "<title>&lt;b&gt;run</title>" in whole
  assert "&lt;script&gt;" in drawn and "<script" not in drawn
  assert "<b>run" not in drawn
  assert asked == [] and console == []


@in_browser
def test_an_address_opens_its_rollout(tmp_path):
  samples = [_sample(step, 0, step % 2 * 1.0) for step in range(1, 7)]
  page = report.write(_write_run(tmp_path / "run", samples))
  _, drawn, console = _open(page, tmp_path / "profile", "#rollouts/0/wrong/3")
  assert "step 4 · 2 of 3" in drawn
  assert "accuracy after policy" in drawn and "75.0 %" in drawn
  assert console == []


@in_browser
def test_the_page_answers_keys_clicks_and_pointer(tmp_path):
  samples = [
    *(_sample(1, 0, x) for x in (0.0, 1.0)),
    *(_sample(1, 1, x) for x in (0.0, 0.0, 0.0)),
    *(_sample(2, g, 1.0, replayed=True, image=_png(16, 8)) for g in (5, 6)),
    _sample(3, 4, 0.0),
  ]
  page = report.write(_write_run(tmp_path / "run", samples))
  # The driver is a second script, which the page's own policy would refuse.
  text = re.sub("<meta http-equiv[^>]*>", "", page.read_text())
  page.write_text(text + f"<script>{DRIVER}</script>")
  whole, _, console = _open(page, tmp_path / "profile")
  (seen,) = re.findall('<pre id="seen">(.*?)</pre>', whole)
  assert json.loads(seen) == [
    "step 1 · 1 of 4 2",
    "step 1 · 2 of 4 3",
    "step 2 · 3 of 4 2",
    "step 1 · 2 of 4 3",
    "step 1 · 1 of 2 3",
    "step 2 · 1 of 1 2",
    "2 badges",
    "1",
    "0.5",
    "dark",
  ]
  # One line, the driver's own: so a console with an error would be seen.
  assert len(console) == 1 and "the end of the driver" in console[0]


@in_browser
def test_a_constant_far_from_zero_is_drawn(tmp_path):
  """The running mean rounds, which is no range to put marks on."""
  folder = _write_run(tmp_path / "run", steps=60)
  _, drawn, said = _open(report.write(folder), tmp_path / "profile")
  assert not said and "Time of a step" in drawn
