"""Cross entropy against InternVL's generation loss."""

from pathlib import Path

import jax
import numpy as np

from jaxrl_mm.losses import supervised

MPO = np.load(Path(__file__).parents[1] / "golden" / "mpo_grpo.npz")


def test_both_aggregates_are_those_of_internvl():
  with jax.enable_x64(True):
    for step in range(3):
      logits = MPO["mpo/policy_logits"][step, :3, :-1]
      labels = MPO["mpo/labels"][step, :3, 1:]
      mask = labels != -100
      logp = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)),
        np.where(mask, labels, 0)[..., None],
        axis=-1,
      )[..., 0]
      token = supervised.cross_entropy(logp, mask)
      sequence = supervised.cross_entropy(logp, mask, aggregate="sequence")
      np.testing.assert_allclose(token, MPO["mpo/nll"][step], 1e-10)
      np.testing.assert_allclose(
        sequence, MPO["mpo/nll_seqmean_paper"][step], 1e-10
      )


def test_empty_rows_count_nowhere():
  logp = np.array([[-1.0, -3.0], [np.nan, -np.inf]])
  mask = np.array([[True, True], [False, False]])
  for aggregate in ("token", "sequence"):
    loss = supervised.cross_entropy(logp, mask, aggregate=aggregate)
    assert float(loss) == 2
  assert float(supervised.cross_entropy(logp, mask & False)) == 0
