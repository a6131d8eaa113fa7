"""The programs of sampling, each at its largest."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import arithmetic, programs
from benchmarks.arithmetic import Work
from benchmarks.programs import Program, View
from jaxrl_mm.data import loader
from jaxrl_mm.models.attention import Seats
from jaxrl_mm.sampling import schedule as schedules
from jaxrl_mm.sampling import weights
from jaxrl_mm.sampling.decode import Plan, Sampling
from jaxrl_mm.sampling.schedule import Programs, Schedule

_SETTINGS = (
  "config.policy.schedule.slots, config.mesh.tensor, "
  "config.data.completion_tokens"
)


class Asked(NamedTuple):
  """One call of the sampler; `weights` and `cache` are the forms it keeps."""

  stage: str
  prompts: int
  samples: int
  temperature: float
  schedule: Schedule
  weights: str = "model"
  cache: str = "model"
  top_k: int = 0
  top_p: float = 1.0


class _Call(NamedTuple):
  """What the programs of a call share; counts are of all shards together."""

  view: View
  asked: Asked
  jitted: Programs
  params: Any
  places: int
  slots: int
  chunk: int
  beside: Any

  @property
  def room(self) -> int:
    return self.view.setting.layout.completion_tokens

  @property
  def prompts(self) -> Any:
    shapes = loader.prompt_shapes(self.view.setting.layout, self.asked.prompts)
    return programs.rows(self.view, shapes)

  def at(self, capacity: int) -> Any:
    """Slots with so much room, in the layout the compiler gives them."""
    sizes = self.places, self.slots, capacity
    with jax.set_mesh(self.view.setting.mesh):
      lowered = self.jitted.empty.lower(self.prompts, *sizes)
    layout = lowered.compile().output_shardings
    return programs.with_layout(lowered.out_info, layout)


def of_call(
  view: View, asked: Asked, params: Any, beside: Any
) -> Iterator[Program]:
  """Weights for it, prefill, decode and resize.

  Args:
    view: of the run.
    asked: how much.
    params: as they are trained.
    beside: what else lies on the devices.
  """
  yield _reshard(view, asked, params, beside)
  call = _make_call(view, asked, params, beside)
  yield _prefill(call)
  yield _decode(call)
  if call.room > asked.schedule.block:
    yield _resize(call)


# Stages that sample alike compile once.
@cache
def _to_decode(model, form):
  return jax.jit(lambda params: weights.to_decode(model, params, form))


_make_programs = cache(schedules.make_programs)


def _reshard(view, asked, params, beside) -> Program:
  size = 2.0 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
  return Program(
    asked.stage,
    "reshard",
    _to_decode(view.e.model, asked.weights),
    lambda: (params,),
    {},
    beside,
    Work(0.0, size),
    1,
    0,
    "config.policy.decode_weights, config.mesh.tensor",
  )


def _make_call(view, asked, params, beside) -> _Call:
  layout, model = view.setting.layout, view.e.model
  sampling = Sampling(
    samples_per_prompt=asked.samples,
    max_tokens=layout.completion_tokens,
    end_token=0,
    pad_token=0,
    image_token=0,
    temperature=asked.temperature,
    top_k=asked.top_k,
    top_p=asked.top_p,
    cache=asked.cache,
  )
  cut = schedules.sizes(
    asked.schedule,
    prompts=asked.prompts // view.shards,
    length=layout.prompt_tokens,
    samples=asked.samples,
    shards=view.shards,
  )
  shapes = jax.eval_shape(_to_decode(model, asked.weights), params)
  return _Call(
    view,
    asked,
    _make_programs(model, sampling, asked.schedule),
    programs.placed(view.setting.mesh, shapes, weights.RULES),
    *(n * view.shards for n in cut),
    (beside, params),
  )


def _number(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def _prefill(call: _Call) -> Program:
  view, chunk = call.view, call.chunk
  model, layout = view.e.model, view.setting.layout
  each = arithmetic.decoder_pass(
    model, chunk, layout.prompt_tokens, view.shards
  )
  each += arithmetic.vision_pass(model, layout.pictures, chunk, view.shards)
  which = _number(chunk), _number(chunk)
  return Program(
    call.asked.stage,
    "prefill",
    call.jitted.prefill,
    lambda: (call.params, call.prompts, call.at(call.room), *which),
    {},
    call.beside,
    each,
    -(-call.asked.prompts // chunk),
    0,
    _SETTINGS,
  )


def _decode(call: _Call) -> Program:
  view, asked, slots = call.view, call.asked, call.slots
  key = programs.everywhere(view, jax.eval_shape(lambda: jax.random.key(0)))
  plan = Plan(
    fresh=jax.ShapeDtypeStruct((slots,), bool),
    row=_number(slots),
    limit=_number(slots),
    seats=Seats(_number(call.places, asked.samples), _number(slots)),
    leave_at=_number(),
  )
  prompt, answer = view.setting.layout.prompt_tokens, view.answer_tokens
  token = arithmetic.decode_token(
    view.e.model,
    rows=slots,
    prompts=call.places,
    prompt=prompt,
    own=answer // 2,
    reads=view.shards,
  )
  steps = min(asked.schedule.segment, call.room)
  rows = asked.prompts * asked.samples
  return Program(
    asked.stage,
    "decode",
    call.jitted.decode,
    lambda: (call.params, call.at(call.room), plan, key),
    {},
    (call.beside, call.prompts),
    token * steps,
    -(-rows * answer // (slots * steps)),
    rows * (prompt + answer),
    _SETTINGS,
  )


def _resize(call: _Call) -> Program:
  numbers = _number(call.places), _number(call.slots)
  return Program(
    call.asked.stage,
    "resize",
    call.jitted.resize,
    lambda: (call.at(call.room // 2), *numbers),
    {"capacity": call.room},
    (call.beside, call.prompts, call.params),
    Work(),
    0,
    0,
    _SETTINGS,
  )
