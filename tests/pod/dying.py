"""A process of two, one of which dies or fails; nobody watches from outside.

See `processes_pod.py`. The other one waits for it, in a collective or not.
"""

import os
import signal
import sys
import time

import jax

from jaxrl_mm import sharding

sharding.join_processes(os.environ)
sharding.wait_for_all("both are there")
ends, how, waits = sys.argv[1:]
if jax.process_index() == int(ends):
  if how == "fails":
    sys.exit("error: a bad record")
  os.kill(os.getpid(), signal.SIGKILL)
if waits == "for it":
  sharding.sum_over_processes(1.0)
time.sleep(600)
