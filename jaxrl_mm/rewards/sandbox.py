"""Runs a program that a model wrote, where it can do no harm.

By bubblewrap, which Flatpak trusts with the same task: a mount, process,
network, IPC and (for users other than root) user namespace of its own, without
capabilities. The program sees the system's programs and the Python
installation, read-only, and one scratch folder in memory. What it does not
hold against is a fault of the kernel itself.
"""

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from jaxrl_mm.errors import InputError
from jaxrl_mm.structs import Number

_TOOLS = ("bwrap", "prlimit", "setpriv")
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
_PROGRAM = "/program.py"
_PACKAGES = "/packages"
_IMPORTS = f"import sys; sys.path.insert(0, {_PACKAGES!r})\n"
_TO_CHANGE_USER = [
  word
  for name in ("SETUID", "SETGID", "SETPCAP")
  for word in ("--cap-add", f"CAP_{name}")
]
_OTHER_USER = ["--unshare-user", "--uid", "65534", "--gid", "65534"]
# Kept of what a program writes to its error stream, in bytes.
_ERROR_TAIL = 2000


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may use.

  Attributes:
    seconds: of wall time; its processor time has the same limit.
    memory: address space of each process, in bytes.
    processes: at a time, threads counted.
    output: of the output stream, and of any file, in bytes.
    scratch: of all files together, in bytes of memory.
  """

  seconds: Number = 10.0
  memory: int = 2**30
  processes: int = 16
  output: int = 2**24
  scratch: int = 2**26


class Outcome(NamedTuple):
  """How a program ended.

  Attributes:
    output: what it wrote, with marks for what is no UTF-8.
    errors: the end of its error stream.
    code: exit status; negative or above 128 for a signal.
    timed_out: it was stopped.
  """

  output: str
  errors: str
  code: int
  timed_out: bool


def run(
  program: str,
  stdin: str = "",
  limits: Limits | None = None,
  packages: Sequence[Path] = (),
) -> Outcome:
  """Runs a Python program until it ends or its time is over.

  All that it started ends with it.

  Args:
    program: source text.
    stdin: what it reads.
    limits: None stands for the defaults.
    packages: folders of Python packages that it can import, read-only.

  Raises:
    InputError: there is no sandbox on this machine; nothing was run.
  """
  check()
  return _run(program, stdin, limits or Limits(), packages)


@functools.cache
def check() -> None:
  """Looks once whether programs can be run here.

  Raises:
    InputError: a tool is missing, or this machine does not let it work.
  """
  missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
  if missing:
    raise InputError(
      f"running code that a model wrote needs {missing[0]}, which is not "
      "installed; install bubblewrap and util-linux (Debian: apt install "
      "bubblewrap)"
    )
  outcome = _run("print('ready')", "", Limits())
  if outcome.output != "ready\n":
    raise InputError(
      "bubblewrap cannot make a sandbox on this machine "
      f"({outcome.errors.strip() or outcome.code}); allow user namespaces, or "
      "run the container with them"
    )


def _run(
  program: str, stdin: str, limits: Limits, packages: Sequence[Path] = ()
) -> Outcome:
  # Files, not pipes: nothing has to be pumped, and a limit on the size of files
  # holds for the output too.
  with (
    tempfile.TemporaryFile() as source,
    tempfile.TemporaryFile() as given,
    tempfile.TemporaryFile() as output,
    tempfile.TemporaryFile() as errors,
  ):
    _fill(source, _IMPORTS + program if packages else program)
    _fill(given, stdin)
    streams = (given, output, errors)
    code, timed_out = _wait_for(source, streams, limits, packages)
    text = _tail(output, limits.output)
    return Outcome(text, _tail(errors, _ERROR_TAIL), code, timed_out)


def _wait_for(source, streams, limits: Limits, packages) -> tuple[int, bool]:
  """Exit status, and whether it had to be stopped."""
  with _pipe() as (told, tell), _pipe() as (held, release):
    own = [source.fileno(), tell.fileno(), held.fileno()]
    process = subprocess.Popen(
      _command(*own, limits, packages),
      **dict(zip(("stdin", "stdout", "stderr"), streams)),
      # The first process of the namespace can be looked at from inside.
      env={},
      pass_fds=own,
      start_new_session=True,
    )
    tell.close()
    try:
      with _first_process(told) as first:
        release.write(b"go")
        return _wait(process, first, limits.seconds)
    finally:
      # Where it did not start, or the caller was interrupted.
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _pipe():
  read, write = os.pipe()
  with open(read, "rb", buffering=0) as r, open(write, "wb", buffering=0) as w:
    yield r, w


@contextlib.contextmanager
def _first_process(told: IO[bytes]):
  """A handle on the first process of the namespace, which waits for a go.

  The kernel ends a namespace with its first process. Only this handle is sure
  to be the right one: a program may keep bubblewrap from hearing of its end.
  """
  text = b""
  while b"}" not in text and (part := told.read(4096)):
    text += part
  pid = json.loads(text)["child-pid"] if b"}" in text else None
  first = os.pidfd_open(pid) if pid else None
  try:
    yield first
  finally:
    if first is not None:
      with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(first, signal.SIGKILL)
      # It ends last, when all others of its namespace are gone.
      select.select([first], [], [])
      os.close(first)


def _wait(process, first: int | None, seconds: Number) -> tuple[int, bool]:
  try:
    return process.wait(seconds), False
  except subprocess.TimeoutExpired:
    if first is not None:
      signal.pidfd_send_signal(first, signal.SIGKILL)
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait(), True


def _fill(file: IO[bytes], text: str) -> None:
  file.write(text.encode("utf-8", errors="replace"))
  file.seek(0)


def _tail(file: IO[bytes], size: int) -> str:
  """The end of a file; whoever else holds it may have moved its position."""
  length = os.fstat(file.fileno()).st_size
  start = max(length - size, 0)
  data = os.pread(file.fileno(), min(size, length), start)
  return data.decode("utf-8", errors="replace")


def _command(
  source: int, tell: int, held: int, limits: Limits, packages: Sequence[Path]
) -> list[str]:
  root = os.geteuid() == 0
  bwrap = [
    shutil.which("bwrap") or "bwrap",
    *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
    *("--unshare-cgroup-try", "--die-with-parent", "--new-session"),
    *("--info-fd", str(tell), "--block-fd", str(held)),
    *("--hostname", "sandbox", "--clearenv"),
    *("--setenv", "PATH", "/usr/bin:/bin", "--setenv", "HOME", "/tmp"),
    *_system(),
    *_bound(packages),
    *("--proc", "/proc", "--dev", "/dev"),
    *("--size", str(limits.scratch), "--perms", "1777", "--tmpfs", "/tmp"),
    *("--perms", "0444", "--ro-bind-data", str(source), _PROGRAM),
    # Their memory would have no limit.
    *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
    *("--cap-drop", "ALL"),
    *(_TO_CHANGE_USER if root else _OTHER_USER),
  ]
  python = os.path.realpath(sys.executable)
  return [*bwrap, "--", *_bounds(limits, root), python, "-I", "-B", _PROGRAM]


def _system() -> list[str]:
  """The system's programs and this Python, read-only; no /etc, no /home."""
  folders = dict.fromkeys(["/usr", sys.base_prefix])
  inner = [f for f in folders if f == "/usr" or not f.startswith("/usr/")]
  binds = []
  for folder in inner:
    # Or they would be closed to all but the owner.
    for parent in reversed(Path(folder).parents[:-1]):
      binds += ["--perms", "0755", "--dir", str(parent)]
    binds += ["--ro-bind", folder, folder]
  for folder in _SYSTEM:
    if os.path.islink(folder):
      binds += ["--symlink", os.readlink(folder), folder]
    elif os.path.isdir(folder):
      binds += ["--ro-bind", folder, folder]
  return binds


def _bound(packages: Sequence[Path]) -> list[str]:
  binds = ["--perms", "0755", "--dir", _PACKAGES] if packages else []
  for folder in packages:
    binds += ["--ro-bind", str(folder), f"{_PACKAGES}/{folder.name}"]
  return binds


def _bounds(limits: Limits, root: bool) -> list[str]:
  """Limits on what one process may use, and a user nobody else is.

  Processes are counted by user. In a user namespace of its own the program is
  alone; root, whom the limit does not hold, becomes a user drawn at random.
  """
  bounds = [
    "prlimit",
    f"--as={limits.memory}",
    f"--cpu={max(1, round(limits.seconds))}",
    f"--nproc={limits.processes}",
    f"--fsize={limits.output}",
    *("--nofile=128", "--core=0", "--memlock=0", "--msgqueue=0", "--"),
  ]
  if not root:
    return bounds
  user = str(2**30 + secrets.randbelow(2**20))
  become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
  without = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", "--"]
  return [*bounds, *become, *without]
