"""What is known of a program before it is compiled."""

import jax
import jax.numpy as jnp

from benchmarks import compiled
from benchmarks.arithmetic import Work
from benchmarks.chips import Chip
from benchmarks.programs import Program

CHIP = Chip(1000, 1.0, 1.0, 1.0, "small", 1, ())


def program(name, given, beside=0):
  arrays = lambda n: jax.ShapeDtypeStruct((n,), jnp.int8)
  return Program(
    "stage",
    name,
    jax.jit(lambda x: x),
    lambda: (arrays(given),),
    {},
    arrays(beside),
    Work(),
    1,
    0,
    "",
  )


def test_what_takes_no_compiler_is_asked_first():
  listed = [
    program("train step", 900),
    program("reshard", 10),
    program("decode", 500, beside=400),
    program("log-probs", 500, beside=501),
    program("prefill", 700),
  ]
  found = compiled.quickest_refusal(listed, CHIP)
  order = [p.name for p in found]
  assert order == [
    "log-probs",
    "reshard",
    "decode",
    "prefill",
    "train step",
  ]


def test_too_large_arrays_are_not_compiled():
  found = compiled.measure(program("decode", 500, beside=501), None, CHIP)
  assert (found.arguments, found.beside, found.total) == (500, 501, 1001)
  assert found.blame == [
    (501, " (501,), lies beside"),
    (500, "0 (500,), an argument"),
  ]
