"""Fifty and more ways out of the sandbox, none of which may lead anywhere.

Each program says ESCAPED if it got what it wants. Where there is no sandbox the
attempts are skipped, but that nothing runs without one is tested everywhere.
"""

import os
import shutil
import socket
import subprocess
import time

import pytest

from jaxrl_mm.errors import InputError
from jaxrl_mm.rewards import sandbox
from jaxrl_mm.rewards.sandbox import Limits

SECRET = "the-secret-of-this-test"
QUICK = Limits(seconds=2, processes=16, output=2**20, scratch=2**22)


def _refusal():
  try:
    sandbox.check()
  except InputError as error:
    return str(error)
  return None


needs_sandbox = pytest.mark.skipif(
  _refusal() is not None, reason=f"no sandbox here: {_refusal()}"
)

# Helpers that every attempt may use; `tries(f)` says whether f() went through.
PRELUDE = """
import ctypes, os, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def tries(f):
  try:
    got = f()
  except BaseException:
    return False
  return got is not False and got is not None
def escaped(yes):
  print("ESCAPED" if yes else "held", flush=True)
"""

# {canary}: a file of the host; {pid}: the test's process; {port}: a server on
# the host's loopback; {name}: its abstract socket; {fd}: an open descriptor.
ATTEMPTS = {
  # Files of the host.
  "read the canary": "escaped(tries(lambda: open({canary!r}).read()))",
  "read passwd": "escaped(tries(lambda: open('/etc/passwd').read()))",
  "read shadow": "escaped(tries(lambda: open('/etc/shadow').read()))",
  "list homes": "escaped(tries(lambda: os.listdir('/home') or None))",
  "list the host's tmp": "escaped(bool(os.listdir('/tmp')))",
  "climb": "escaped(tries(lambda: open('/tmp' + '/..' * 20 + {canary!r})))",
  "follow a symlink": (
    "os.symlink({canary!r}, '/tmp/l')\n"
    "escaped(tries(lambda: open('/tmp/l').read()))"
  ),
  "hard-link": "escaped(tries(lambda: os.link('/usr/bin/env', '/tmp/l') or 1))",
  "write the canary": (
    "escaped(tries(lambda: open({canary!r}, 'w').write('x')))"
  ),
  "write a program": (
    "escaped(tries(lambda: open('/usr/bin/env', 'ab').write(b'x')))"
  ),
  "write into python": (
    "escaped(tries(lambda: open(os.__file__, 'ab').write(b'')))"
  ),
  "write the root": "escaped(tries(lambda: open('/new', 'w')))",
  "write into dev": "escaped(tries(lambda: open('/dev/new', 'w')))",
  "write into dev/shm": (
    "escaped(tries(lambda: open('/dev/shm/new', 'wb').write(b'x' * 2**25)))"
  ),
  "change itself": "escaped(tries(lambda: open('/program.py', 'w')))",
  "make a program setuid": (
    "escaped(tries(lambda: os.chmod('/usr/bin/env', 0o4755) or 1))"
  ),
  "make a device": (
    "escaped(tries(lambda: os.mknod('/tmp/d', 0o60666, 2049) or 1))"
  ),
  "read a disk": "escaped(tries(lambda: open('/dev/sda', 'rb').read(1)))",
  "read memory": "escaped(tries(lambda: open('/dev/mem', 'rb').read(1)))",
  "read kernel memory": (
    "escaped(tries(lambda: open('/proc/kcore', 'rb').read(1)))"
  ),
  # Mounts and namespaces.
  "mount": ("escaped(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0)"),
  "mount writable again": (
    "escaped(libc.mount(b'none', b'/usr', None, 32 | 4096, None) == 0)"
  ),
  "unmount": "escaped(libc.umount2(b'/tmp', 2) == 0)",
  "chroot": "escaped(tries(lambda: os.chroot('/tmp') or 1))",
  "enter the first namespace": (
    "enter = lambda: libc.setns(os.open('/proc/1/ns/mnt', 0), 0) == 0\n"
    "escaped(tries(enter) and os.path.exists({canary!r}))"
  ),
  "root of the first process": (
    "escaped(tries(lambda: open('/proc/1/root' + {canary!r})))"
  ),
  "folder of the first process": (
    "escaped(tries(lambda: open('/proc/1/cwd' + {canary!r})))"
  ),
  "new namespaces": (
    "libc.unshare(0x10000000 | 0x20000)\n"
    "libc.mount(b'none', b'/', None, 32, None)\n"
    "escaped(os.path.exists({canary!r}) or os.path.exists('/etc/passwd'))"
  ),
  # Processes of the host.
  "see the test": (
    "pids = [p for p in os.listdir('/proc') if p.isdigit()]\n"
    "lines = [open(f'/proc/{{p}}/cmdline').read() for p in pids]\n"
    "escaped(any('pytest' in line for line in lines))"
  ),
  "signal the test": (
    "escaped({pid} != os.getpid() and {pid} > 50 and "
    "tries(lambda: os.kill({pid}, 0) or 1))"
  ),
  "kill the first process": (
    "tries(lambda: os.kill(1, 9) or 1)\ntime.sleep(0.2)\nescaped(False)"
  ),
  "kill everyone": "os.kill(-1, 9)",
  "kill the group": "os.killpg(0, 9)",
  "trace the test": (
    "escaped({pid} > 50 and libc.ptrace(16, {pid}, 0, 0) == 0)"
  ),
  "memory of the first process": (
    "escaped(tries(lambda: open('/proc/1/mem', 'rb').read(1)))"
  ),
  "type into the terminal": (
    "import fcntl\nescaped(tries(lambda: fcntl.ioctl(0, 0x5412, b'x')))"
  ),
  "be nicer than others": "escaped(tries(lambda: os.nice(-10)))",
  "become root": "escaped(tries(lambda: os.setuid(0) or 1))",
  "raise its limits": (
    "import resource as r\n"
    "no = (r.RLIM_INFINITY,) * 2\n"
    "escaped(tries(lambda: r.setrlimit(r.RLIMIT_AS, no) or 1))"
  ),
  # Secrets.
  "its environment": "escaped({secret!r} in str(os.environ))",
  "environment of the first process": (
    "escaped(tries(lambda: {secret!r} in "
    "open('/proc/1/environ').read() or None))"
  ),
  "inherited descriptors": (
    "fds = [int(f) for f in os.listdir('/proc/self/fd')]\n"
    "escaped(any(tries(lambda: {secret!r}.encode() in os.pread(f, 99, 0) "
    "or None) for f in fds))"
  ),
  "descriptor by number": (
    "escaped(tries(lambda: {secret!r}.encode() in os.pread({fd}, 99, 0) "
    "or None))"
  ),
  # The network.
  "loopback": (
    "escaped(tries(lambda: socket.create_connection(('127.0.0.1', {port}), 1)))"
  ),
  "the internet": (
    "escaped(tries(lambda: socket.create_connection(('1.1.1.1', 53), 1)))"
  ),
  "a name": "escaped(tries(lambda: socket.gethostbyname('example.org')))",
  "an abstract socket": (
    "s = socket.socket(socket.AF_UNIX)\n"
    "escaped(tries(lambda: s.connect('\\0' + {name!r}) or 1))"
  ),
  "a raw socket": (
    "escaped(tries(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)))"
  ),
  "a packet socket": (
    "escaped(tries(lambda: socket.socket(socket.AF_PACKET, 3)))"
  ),
  # More than its share.
  "fork bomb": (
    "n = 0\n"
    "while n < 100:\n"
    "  if os.fork() == 0:\n    time.sleep(9)\n  n += 1\n"
    "escaped(n > 50)"
  ),
  "threads": (
    "import threading\n"
    "for n in range(100):\n"
    "  threading.Thread(target=time.sleep, args=(9,)).start()\n"
    "escaped(True)"
  ),
  "memory": "escaped(tries(lambda: bytearray(2**31)))",
  "fill the disk": (
    "def fill():\n"
    "  for i in range(64):\n"
    "    open(f'/tmp/{{i}}', 'wb').write(b'x' * 2**19)\n"
    "  return True\n"
    "escaped(tries(fill))"
  ),
  "a file of holes": (
    "escaped(tries(lambda: os.truncate(os.open('/tmp/f', 66), 2**40) or 1))"
  ),
  "a daemon": (
    "if os.fork() == 0:\n"
    "  os.setsid()\n"
    "  if os.fork() == 0:\n    time.sleep(99)\n"
    "  os._exit(0)\n"
    "escaped(False)"
  ),
  "deaf to signals": (
    "import signal\n"
    "[tries(lambda: signal.signal(s, 1)) for s in range(1, 65)]\n"
    "while True: pass"
  ),
}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
  """What there is to be had outside."""
  canary = tmp_path_factory.mktemp("host") / "canary"
  canary.write_text(SECRET)
  name = f"sandbox-test-{os.getpid()}"
  with (
    socket.create_server(("127.0.0.1", 0)) as server,
    socket.socket(socket.AF_UNIX) as abstract,
    open(canary) as file,
  ):
    abstract.bind("\0" + name)
    abstract.listen()
    os.set_inheritable(file.fileno(), True)
    os.environ["SANDBOX_TEST_SECRET"] = SECRET
    yield {
      "canary": str(canary),
      "pid": os.getpid(),
      "port": server.getsockname()[1],
      "name": name,
      "fd": file.fileno(),
      "secret": SECRET,
    }
  assert canary.read_text() == SECRET
  del os.environ["SANDBOX_TEST_SECRET"]


@needs_sandbox
@pytest.mark.parametrize("name", ATTEMPTS)
def test_no_way_out(host, name):
  start = time.monotonic()
  program = PRELUDE + ATTEMPTS[name].format(**host)
  outcome = sandbox.run(program, limits=QUICK)
  assert "ESCAPED" not in outcome.output
  assert time.monotonic() - start < 10
  # The attempt was made, and did not stop at a slip of this test.
  for slip in ("SyntaxError", "NameError", "AttributeError"):
    assert slip not in outcome.errors
  killed = name in ("kill everyone", "kill the group")
  stopped = ("fork bomb", "threads", "deaf to signals")
  assert outcome.output or killed or name in stopped


def test_there_are_fifty():
  assert len(ATTEMPTS) >= 50


@needs_sandbox
@pytest.mark.parametrize(
  "last",
  [
    "time.sleep(0.2)",
    # Outside of the root's sandbox the first process may be stopped, so that
    # it cannot end the others.
    "libc.ptrace(16, 1, 0, 0)\ntime.sleep(60)",
    # And a program need not die with its parent.
    "libc.prctl(1, 0)\ntime.sleep(60)",
  ],
)
def test_nothing_is_left_running(last):
  mark = f"left-{os.getpid()}"
  program = (
    f"{PRELUDE}\nif os.fork() == 0:\n"
    "  os.setsid()\n  libc.prctl(1, 0)\n"
    f"  os.execvp('sleep', ['{mark}', '60'])\n"
    f"{last}"
  )
  sandbox.run(program, limits=Limits(seconds=1))
  found = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True)
  assert mark.encode() not in found.stdout


@needs_sandbox
@pytest.mark.parametrize(
  "program, stdin, output, code, timed_out",
  [
    ("print(int(input()) + 1)", "2\n", "3\n", 0, False),
    ("import math; print(math.gcd(12, 18))", "", "6\n", 0, False),
    (
      "open('/tmp/a', 'w').write('b'); print(open('a').read())",
      "",
      "b\n",
      0,
      False,
    ),
    ("import sys; sys.exit(3)", "", "", 3, False),
    ("1 / 0", "", "", 1, False),
    ("print('é', flush=True)\nwhile True: pass", "", "é\n", -9, True),
    ("import os; os.write(1, b'\\xff')", "", "�", 0, False),
    ("import os; os.close(1); os.close(2)", "", "", 0, False),
    ("not python", "", "", 1, False),
  ],
)
def test_what_a_program_may_do(program, stdin, output, code, timed_out):
  outcome = sandbox.run(program, stdin, Limits(seconds=1))
  assert outcome.output == output
  assert (outcome.code, outcome.timed_out) == (code, timed_out)


@needs_sandbox
def test_a_flood_is_cut_off():
  flood = "import sys\nwhile True: sys.stdout.write('x' * 2**16)"
  outcome = sandbox.run(flood, limits=QUICK)
  assert len(outcome.output) <= QUICK.output
  errors = "import sys\nwhile True: sys.stderr.write('x' * 2**16)"
  assert len(sandbox.run(errors, limits=QUICK).errors) <= 2000


@pytest.fixture
def unchecked():
  """`check` looks again, before and after."""
  sandbox.check.cache_clear()
  yield
  sandbox.check.cache_clear()


@pytest.mark.parametrize("missing", ["bwrap", "prlimit", "setpriv"])
def test_without_its_tools_nothing_runs(missing, unchecked, monkeypatch):
  which = shutil.which
  monkeypatch.setattr(
    sandbox.shutil, "which", lambda t: None if t == missing else which(t) or t
  )
  monkeypatch.setattr(sandbox.subprocess, "Popen", None)
  with pytest.raises(InputError, match=f"needs {missing}, .*install"):
    sandbox.run("print(1)")


def test_where_it_cannot_work_nothing_runs(unchecked, monkeypatch):
  ran = []

  def refused(program, stdin, limits):
    ran.append(program)
    return sandbox.Outcome("", "No permissions to create a namespace", 1, False)

  monkeypatch.setattr(sandbox.shutil, "which", lambda tool: tool)
  monkeypatch.setattr(sandbox, "_run", refused)
  with pytest.raises(InputError, match="No permissions"):
    sandbox.run("print('mine')")
  assert ran == ["print('ready')"]
