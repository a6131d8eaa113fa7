"""The loop without a model: a counter that reads a stream of numbers."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxrl_mm import metrics, preemption, sharding
from jaxrl_mm.errors import InputError
from jaxrl_mm.preemption import Preempted
from jaxrl_mm.train.loop import LoopConfig, run_stage, state_shardings
from jaxrl_mm.train_state import TrainState


class Numbers:
  """0, 1, 2, ...: an iterator whose position can be saved."""

  def __init__(self):
    self.next = 0

  def __iter__(self):
    return self

  def __next__(self):
    self.next += 1
    return self.next - 1

  def get_state(self):
    return {"next": self.next}

  def set_state(self, state):
    self.next = state["next"]


def _start():
  return TrainState(
    step=jnp.int32(0),
    params={"total": jnp.float32(0)},
    opt_state=(),
    algorithm=(),
    key=jax.random.key(0),
  )


def _add(number, state, batch):
  total = state.params["total"] + batch
  state = state._replace(step=jnp.int32(number), params={"total": total})
  return state, {"loss": total, "tokens": 1, "bad_steps": 0}


def _run(folder, steps, step=_add, **settings):
  return run_stage(
    folder,
    _start(),
    Numbers(),
    step,
    steps=steps,
    loop=LoopConfig(**({"save_every": 2} | settings)),
    headline=("loss",),
  )


def test_continues_where_the_newest_checkpoint_is(tmp_path):
  _run(tmp_path, 4)
  calls = []

  def watched(number, state, batch):
    calls.append((number, batch))
    return _add(number, state, batch)

  state = _run(tmp_path, 7, watched)
  assert calls == [(5, 4), (6, 5), (7, 6)]
  assert float(state.params["total"]) == sum(range(7))
  lines = metrics.read_lines(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines] == list(range(1, 8))
  assert lines[-1]["seconds"] >= lines[3]["seconds"]


def test_steps_after_the_last_save_are_done_again(tmp_path):
  def dies(number, state, batch):
    if number == 4:
      raise RuntimeError("killed")
    return _add(number, state, batch)

  with pytest.raises(RuntimeError, match="killed"):
    _run(tmp_path, 6, dies)
  state = _run(tmp_path, 6)
  assert float(state.params["total"]) == sum(range(6))
  lines = metrics.read_lines(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines] == list(range(1, 7))


def test_a_finished_stage_runs_no_step(tmp_path):
  def never(number, state, batch):
    raise AssertionError("the stage was finished")

  _run(tmp_path, 4)
  state = _run(tmp_path, 4, never)
  assert float(state.params["total"]) == sum(range(4))


def test_stops_after_too_many_bad_steps(tmp_path):
  def bad(number, state, batch):
    state, written = _add(number, state, batch)
    return state, written | {"bad_steps": number}

  with pytest.raises(InputError, match="the last 3 updates up to step 3"):
    _run(tmp_path, 9, bad, max_bad_steps=3)


def test_asked_to_end_it_saves_and_goes_on_later(tmp_path, monkeypatch):
  asked = iter([False, False, True])
  monkeypatch.setattr(preemption, "is_near", lambda: next(asked))
  with pytest.raises(Preempted, match="has saved step 3; the same command"):
    _run(tmp_path, 6, save_every=10)
  monkeypatch.setattr(preemption, "is_near", lambda: False)
  calls = []

  def watched(number, state, batch):
    calls.append(number)
    return _add(number, state, batch)

  state = _run(tmp_path, 6, watched, save_every=10)
  assert calls == [4, 5, 6]
  assert float(state.params["total"]) == sum(range(6))


def test_steps_are_traced(tmp_path):
  loop = LoopConfig(save_every=10)
  run_stage(
    tmp_path,
    _start(),
    Numbers(),
    _add,
    steps=4,
    loop=loop,
    headline=(),
    profile=range(2, 4),
  )
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_only_the_rows_of_a_buffer_are_cut():
  mesh = sharding.make_mesh(2, 2, 2)
  memory = ({"rows": {"tokens": jnp.zeros((8, 3))}, "born": jnp.zeros(8)},)
  params = {"decoder": {"norm": {"scale": jnp.zeros(4)}}}
  layout = state_shardings(mesh, params, optax.sgd(0.1), memory)
  assert layout.algorithm[0]["rows"]["tokens"].spec == jax.P(
    sharding.BATCH_AXES
  )
  assert layout.algorithm[0]["born"].spec == jax.P()
