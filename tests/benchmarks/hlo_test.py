"""Texts as the TPU compiler writes them, shortened."""

import pytest

from benchmarks import hlo

TEXT = """HloModule jit_step, entry_computation_layout={()->f32[]}

%condition.1 (p.0: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(64)
  %p.0 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body.1 (p.1: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p.1 = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %g = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%x), dimensions={0}
  %r = (f32[2]{0}, f32[3]{0}) all-reduce(%a, %b), to_apply=%sum
  ROOT %t = (s32[]{:T(128)}, bf16[8,4]{1,0}) tuple(%i, %x)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[]{:T(128)} add(%a, %b)
}

ENTRY %main.1 (a.0: bf16[8,4]) -> f32[] {
  %while.1 = (s32[]{:T(128)}, bf16[8,4]{1,0}) while(%t.0), condition=%condition.1, body=%body.1
  %s = (bf16[8,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%a.0), dimensions={0}
  %d = bf16[16,4]{1,0} all-gather-done(%s)
  %e = f32[2,2]{1,0} all-gather(%bf16_all-gather.3), dimensions={0}
}
"""  # noqa: E501


def test_collectives_count_the_rounds_of_a_loop():
  found = hlo.collectives(TEXT)
  each, started, plain = 16 * 4 * 2, 16 * 4 * 2, 2 * 2 * 4
  assert found == {
    "all-gather": (64 + 2, 64 * each + started + plain),
    "all-reduce": (64, 64 * 5 * 4),
  }


def test_a_loop_whose_end_the_data_decide():
  open_end = TEXT.replace("%bound = s32[]{:T(128)} constant(64)", "")
  found = hlo.collectives(open_end, rounds=3)
  assert found["all-reduce"] == (3, 3 * 5 * 4)
  assert found["all-gather"].times == 3 + 2


BRANCHES = """%short (p.0: bf16[8,4]) -> bf16[8,4] {
  %p.0 = bf16[8,4]{1,0} parameter(0)
  ROOT %r = bf16[8,4]{1,0} all-reduce(%p.0), to_apply=%sum
}

%long (p.1: bf16[8,4]) -> bf16[8,4] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %g = bf16[16,4]{1,0} all-gather(%p.1), dimensions={0}
  %h = bf16[16,4]{1,0} all-gather(%p.1), dimensions={0}
  ROOT %c = bf16[8,4]{1,0} fusion(%g, %h), kind=kLoop, calls=%plain
}

%plain (p.2: bf16[16,4], p.3: bf16[16,4]) -> bf16[8,4] {
  ROOT %s = bf16[8,4]{1,0} slice(%p.2), slice={[0:8], [0:4]}
}

ENTRY %main.1 (a.0: bf16[8,4]) -> bf16[8,4] {
  ROOT %c = bf16[8,4]{1,0} conditional(%i, %a.0, %a.0), CHOICE
}
"""


@pytest.mark.parametrize(
  "choice",
  [
    "branch_computations={%short, %long}",
    "true_computation=%long, false_computation=%short",
  ],
)
def test_of_the_branches_only_the_largest_counts(choice):
  found = hlo.collectives(BRANCHES.replace("CHOICE", choice))
  assert found == {"all-gather": (2, 2 * 16 * 4 * 2)}


REFUSAL = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of \
memory in memory space hbm. Used 22.50G of 15.75G hbm. Exceeded by 6.75G.

  Largest program allocations in hbm:

  1. Size: 16.00G
     Operator: op_name="jit(step)/attention/dot_general" source_file="x.py"
     Shape: f32[4,32768,32768]{2,1,0:T(8,128)}
     Unpadded size: 16.00G
     XLA label: fusion.1
  2. Size: 512.0M
     Shape: bf16[4,32768,2048]{2,1,0:T(8,128)(2,1)}
"""


def test_a_refusal_names_the_largest():
  used, with_arguments, largest = hlo.refusal(REFUSAL)
  assert used == int(22.5 * (1 << 30)) and with_arguments
  assert largest == [
    (
      16 << 30,
      "f32[4,32768,32768]{2,1,0:T(8,128)}",
      "jit(step)/attention/dot_general",
    ),
    (512 << 20, "bf16[4,32768,2048]{2,1,0:T(8,128)(2,1)}", ""),
  ]
  assert hlo.refusal("INTERNAL: something else") is None


def test_a_refusal_that_names_nothing():
  # All that libtpu 0.0.42.1 says, of a demo asked for answers of 16k tokens.
  told = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
    "for HLO temporaries (17.07G) exceeds available HBM (15.75G)."
  )
  assert hlo.refusal(told) == (int(17.07 * (1 << 30)), False, [])
