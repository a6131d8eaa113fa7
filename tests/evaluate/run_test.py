"""A run that goes on where it was killed, and its numbers."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from jaxrl_mm.errors import InputError
from jaxrl_mm.evaluate import items as items_
from jaxrl_mm.evaluate import run
from jaxrl_mm.evaluate.benchmarks import BENCHMARKS
from jaxrl_mm.evaluate.items import Benchmark, Item, Verdict
from jaxrl_mm.evaluate.run import Protocol

# Ids repeat on purpose: two different rows, one name.
ITEMS = [Item(f"id{i // 2}", f"{i}?", str(i % 3)) for i in range(7)]


def grade(response, item):
  return Verdict(float(response == item.answer), response or None)


def overall(items, verdicts):
  return {"overall": float(np.mean([v.score for v in verdicts]))}


BENCHMARK = Benchmark(
  lambda folder: ITEMS, lambda i: i.question, grade, overall, ""
)


def zero_then_right(asks):
  """The first sample is "0", the second the truth, the third nothing."""
  return [["0", str(int(a.text[:-1]) % 3), ""] for a in asks]


def test_summary(tmp_path):
  found = run.run_benchmark(
    BENCHMARK,
    ITEMS,
    zero_then_right,
    tmp_path,
    Protocol(samples=3, batch=3),
  )
  # Three of seven truths are "0", which the first sample always says.
  assert found["metrics"]["overall"] == pytest.approx((3 / 7 + 1 + 0) / 3)
  assert found["pass@1"]["value"] == pytest.approx((3 / 7 + 1 + 0) / 3)
  assert found["pass@k"]["3"] == 1
  assert found["unread"] == pytest.approx(1 / 3)
  assert list(found["maj@k"]) == ["1", "2", "3"]
  assert found["maj@k"]["1"]["overall"] == pytest.approx(3 / 7)
  # "0" and the truth tie where the truth is another one.
  assert found["maj@k"]["3"]["overall"] == pytest.approx((3 + 4 / 2) / 7)
  assert json.loads((tmp_path / run.SUMMARY).read_text()) == found


def test_a_killed_run_goes_on_by_row(tmp_path):
  whole = tmp_path / "whole"
  expected = run.run_benchmark(
    BENCHMARK, ITEMS, zero_then_right, whole, Protocol(samples=3, batch=2)
  )
  asked = []

  def dies(asks):
    if len(asked) >= 4:
      raise KeyboardInterrupt
    asked.extend(asks)
    return zero_then_right(asks)

  killed = tmp_path / "killed"
  again = lambda answer: run.run_benchmark(
    BENCHMARK, ITEMS, answer, killed, Protocol(samples=3, batch=2)
  )
  with pytest.raises(KeyboardInterrupt):
    again(dies)
  # And the machine stopped in the middle of a line.
  with open(killed / run.RESULTS, "a") as file:
    file.write('{"row": 4, "id": "id')
  rest = []
  assert again(lambda asks: (rest.extend(asks), zero_then_right(asks))[1]) == (
    expected
  )
  assert [a.text for a in rest] == ["4?", "5?", "6?"]
  results = [(f / run.RESULTS).read_text() for f in (whole, killed)]
  assert results[0] == results[1]


def test_other_results_are_not_mixed_in(tmp_path):
  same = Protocol("a", samples=3)
  run.run_benchmark(BENCHMARK, ITEMS, zero_then_right, tmp_path, same)
  for change in ({"model": "b"}, {"samples": 2}):
    with pytest.raises(InputError, match="another"):
      run.run_benchmark(
        BENCHMARK, ITEMS, zero_then_right, tmp_path, same._replace(**change)
      )
  with pytest.raises(InputError, match="another"):
    run.run_benchmark(BENCHMARK, ITEMS[1:], zero_then_right, tmp_path, same)


def test_no_items_and_too_few_answers(tmp_path):
  with pytest.raises(InputError, match="no items"):
    run.run_benchmark(BENCHMARK, [], zero_then_right, tmp_path, Protocol())
  with pytest.raises(ValueError, match="7 questions got 7 answers of .3. "):
    run.run_benchmark(
      BENCHMARK, ITEMS, zero_then_right, tmp_path, Protocol(samples=2)
    )


def test_a_judge_is_compared_with_the_rules(tmp_path):
  def judge(prompts):
    # Strict once: it does not accept the truth of the first question.
    return ["different" if "\n0?" in p else "Same." for p in prompts]

  found = run.run_benchmark(
    BENCHMARK,
    ITEMS,
    lambda asks: [[str(int(a.text[:-1]) % 3)] for a in asks],
    tmp_path,
    Protocol(judge=judge),
  )
  assert found["metrics"]["overall"] == 1
  assert found["judge"]["metrics"]["overall"] == pytest.approx(6 / 7)
  assert found["judge"]["agreement"] == pytest.approx(6 / 7)


def test_pixels(tmp_path):
  path = tmp_path / "a.png"
  Image.new("L", (3, 2), 7).save(path)
  for picture in (path, path.read_bytes()):
    assert items_.pixels(picture).tolist() == np.full((2, 3, 3), 7).tolist()
  assert items_.pixels((path, path)).shape == (2, 2, 3, 3)
  with pytest.raises(InputError, match="bytes of a record"):
    items_.pixels(b"no picture")


def test_ks_are_those_asked_for(tmp_path):
  found = run.run_benchmark(
    BENCHMARK,
    ITEMS,
    zero_then_right,
    tmp_path,
    Protocol(samples=3, ks=(1, 3)),
  )
  assert list(found["pass@k"]) == list(found["maj@k"]) == ["1", "3"]


def test_a_pool_grades_while_the_next_batch_is_answered(tmp_path):
  """Answers to the second batch come before the first is waited for."""
  order = []

  def submit(work, *arguments):
    future = Future()
    order.append("submitted")

    def result():
      order.append("waited")
      return work(*arguments)

    future.result = result
    return future

  def answer(asks):
    order.append("asked")
    return zero_then_right(asks)

  items, protocol = ITEMS[:2], Protocol(samples=3, batch=1)
  found = run.run_benchmark(
    BENCHMARK, items, answer, tmp_path, protocol, submit=submit
  )
  assert order == ["asked", "submitted", "asked", "submitted"] + 2 * ["waited"]
  assert found["items"] == 2


def test_a_real_pool_gives_the_same(tmp_path):
  aime, items = BENCHMARKS["aime_2024"], [Item(str(i), "", "7") for i in "abc"]
  answer = lambda asks: [[r"\boxed{7}", r"\boxed{8}"] for _ in asks]
  run_in = lambda folder, **settings: run.run_benchmark(
    aime, items, answer, tmp_path / folder, Protocol(samples=2), **settings
  )
  with ProcessPoolExecutor(1, get_context("forkserver")) as pool:
    assert run_in("pool", submit=pool.submit) == run_in("here")


def test_graders_end_with_a_process_that_is_killed():
  program = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from jaxrl_mm.evaluate.run import end_with_parent
if __name__ == "__main__":
  pool = ProcessPoolExecutor(1, get_context("forkserver"), end_with_parent)
  print(pool.submit(os.getpid).result(), flush=True)
  pool.submit(time.sleep, 600).result()
"""
  parent = subprocess.Popen(
    [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
  )
  grader = int(parent.stdout.readline())
  parent.kill()
  parent.communicate()
  deadline = time.monotonic() + 60
  while os.path.exists(f"/proc/{grader}") and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not os.path.exists(f"/proc/{grader}")
