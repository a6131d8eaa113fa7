"""launch/tpu_pod.sh, against a gcloud that only notes what it is told."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "tpu_pod.sh"
# `describe` gives the lines of the file `states` one after the other, the last
# for ever; NONE and ERROR stand for failures. A call whose words contain those
# of FAIL fails, once a line.
GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
if [[ $* == *buckets*describe* ]]; then
  [[ $* == *gs://flat*  ]] && exit 0
  [[ $* == *--raw*hierarchicalNamespace* ]] && echo '  enabled: true'
  exit 0
fi
if [[ $* == *describe* ]]; then
  state=$(head -n 1 states)
  [[ $(wc -l < states) -gt 1 ]] && sed -i 1d states
  case $state in
    NONE) echo 'ERROR: NOT_FOUND: there is none' >&2; exit 1 ;;
    ERROR) echo 'ERROR: try again' >&2; exit 1 ;;
  esac
  echo "$state"
  exit 0
fi
printf '%s\\0' "$@" >> calls
printf '\\n\\0' >> calls
for word in "$@"; do
  [[ $word == */variables || $word == */jaxrl_mm.tgz ]] && cp -p "$word" .
done
if [[ -s fail ]] && [[ $* == *"$(head -n 1 fail)"* ]]; then
  sed -i 1d fail
  exit 1
fi
exit 0
"""
FLAGS = ("--name", "pod", "--zone", "here", "--type", "v5p-256")


@pytest.fixture
def gcloud(tmp_path):
  """A folder with the stand-in."""
  path = tmp_path / "gcloud"
  path.write_text(GCLOUD)
  path.chmod(0o755)
  return tmp_path


def launch(folder, *arguments, states=("ACTIVE",), fail=()):
  """Runs the script; gives back its result and the calls of gcloud."""
  (folder / "states").write_text("".join(f"{s}\n" for s in states))
  (folder / "fail").write_text("".join(f"{s}\n" for s in fail))
  done = subprocess.run(
    [SCRIPT, *arguments],
    env=os.environ
    | {"PATH": f"{folder}:{os.environ['PATH']}", "POLL_SECONDS": "0"},
    capture_output=True,
    text=True,
    timeout=60,
  )
  calls = folder / "calls"
  lines = calls.read_text().split("\n\0") if calls.exists() else []
  return done, [line.rstrip("\0").split("\0") for line in lines if line]


GCSFUSE = "--implicit-dirs", "--metadata-cache-ttl-secs", "0"
# Stand-ins for what a worker has; each notes what it is told.
WORKER = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "${@/#$HOME\\//}" >> ~/asked
printf '\\n\\0' >> ~/asked
[[ ${0##*/} != mountpoint ]]
"""


def on_worker(folder, command):
  """What a worker's shell makes of a command; the calls of its tools."""
  home, tools = folder / "home", folder / "tools"
  for path in (home, tools):
    path.mkdir(exist_ok=True)
  for name in ("uv", "gcsfuse", "mountpoint"):
    (tools / name).write_text(WORKER)
    (tools / name).chmod(0o755)
  (home / "asked").unlink(missing_ok=True)
  shutil.copy(folder / "jaxrl_mm.tgz", home)
  subprocess.run(
    ["bash", "-c", command],
    cwd=home,
    env={"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"},
    check=True,
  )
  lines = (home / "asked").read_text().split("\n\0")
  return [line.rstrip("\0").split("\0") for line in lines if line]


def verbs(calls):
  """What each call was for."""
  known = ("create", "delete", "scp", "ssh")
  return [next(v for v in known if v in call) for call in calls]


def test_creates_copies_installs_and_starts(gcloud):
  done, calls = launch(
    gcloud,
    "configs/digits_r1v2.py:longer_cold_start",
    *FLAGS,
    *("--workdir", "bucket/my run", "--bucket", "b"),
    *("--", "--config.data.prompts=it's here.jsonl"),
    states=("NONE", "PROVISIONING", "ACTIVE"),
  )
  assert done.returncode == 0, done.stderr
  assert verbs(calls) == ["create", "scp", "ssh", "ssh"]
  create, scp, install, start = calls
  assert create[create.index("--accelerator-type") + 1] == "v5p-256"
  assert create[create.index("--runtime-version") + 1] == "v2-alpha-tpuv5"
  assert scp[scp.index("--worker") + 1] == "all"
  assert "-c launch/constraints.txt -e '.[tpu]'" in install[-1]
  # Where the run starts, its workdir and the config's files are the bucket's.
  assert start[-1].startswith("cd jaxrl_mm && JAXRL_PROCESSES=pod")
  checkout = gcloud / "home" / "jaxrl_mm"
  for _ in range(2):  # a slice that is taken again has been set up
    asked = on_worker(gcloud, install[-1])
    assert (checkout / "configs" / "digits_r1v2.py").exists()
    assert ["gcsfuse", *GCSFUSE, "b", "bucket"] in asked
  tree = gcloud / "home" / "bucket"
  (tree / "data").mkdir()
  (checkout / "data" / "prompts.jsonl").write_text("")
  assert (tree / "data" / "prompts.jsonl").exists()
  assert (checkout / "bucket").samefile(tree)
  assert (checkout / "checkpoints").readlink() == Path("bucket/checkpoints")
  assert start[start.index("--worker") + 1] == "all"
  # What the shell of a worker makes of it.
  assert shlex.split(start[-1])[-4:] == [
    "jaxrl_mm.main",
    "--config=configs/digits_r1v2.py:longer_cold_start",
    "--workdir=bucket/my run",
    "--config.data.prompts=it's here.jsonl",
  ]
  assert "JAXRL_PROCESSES=pod" in start[-1]


def test_without_a_bucket_nothing_is_mounted(gcloud):
  done, calls = launch(gcloud, *COMMAND)
  assert done.returncode == 0, done.stderr
  asked = on_worker(gcloud, calls[1][-1])
  assert [words[0] for words in asked] == ["uv", "uv"]
  found = {path.name for path in (gcloud / "home" / "jaxrl_mm").iterdir()}
  assert "launch" in found and not found & {"bucket", "data", "checkpoints"}


def test_a_bucket_in_which_half_a_save_can_look_whole_is_refused(gcloud):
  done, calls = launch(gcloud, *COMMAND, "--bucket", "flat")
  assert done.returncode == 1 and not calls
  assert "flat has no hierarchical namespace" in done.stderr


def test_a_question_that_fails_is_asked_again(gcloud):
  states = ("WAITING_FOR_RESOURCES", "ERROR", "WAITING_FOR_RESOURCES", "ACTIVE")
  done, calls = launch(gcloud, *COMMAND, states=states)
  assert done.returncode == 0, done.stderr
  assert verbs(calls) == ["scp", "ssh", "ssh"]
  done, _ = launch(gcloud, *COMMAND, states=("ERROR",))
  assert done.returncode == 1
  assert "error: gcloud does not tell the state of pod" in done.stderr


COMMAND = ("configs/digits_r1v2.py", *FLAGS, "--workdir", "w")


def test_takes_what_is_there(gcloud):
  done, calls = launch(gcloud, *COMMAND)
  assert done.returncode == 0
  assert verbs(calls) == ["scp", "ssh", "ssh"]


def test_variables_are_handed_on_in_a_file_that_is_read_once(
  gcloud, monkeypatch
):
  monkeypatch.setenv("JUDGE_KEY", "it's $ecret")
  monkeypatch.setenv("OTHER", "2")
  names = "--env", "JUDGE_KEY", "--env", "OTHER"
  done, calls = launch(gcloud, *COMMAND, *names)
  assert done.returncode == 0, done.stderr
  assert verbs(calls) == ["scp", "ssh", "scp", "ssh"]
  assert "ecret" not in str(calls) + done.stdout + done.stderr
  sent = gcloud / "variables"
  assert sent.stat().st_mode & 0o777 == 0o600
  assert calls[2][-5] == "pod:.jaxrl_variables"
  # What a worker's shell makes of it.
  take = calls[3][-1].partition("cd jaxrl_mm")[0]
  sent.rename(gcloud / ".jaxrl_variables")
  told = subprocess.run(
    ["bash", "-c", f'{take} printf "%s %s" "$JUDGE_KEY" "$OTHER"'],
    env={"HOME": str(gcloud), "PATH": os.environ["PATH"]},
    capture_output=True,
    text=True,
    check=True,
  )
  assert told.stdout == "it's $ecret 2"
  assert not (gcloud / ".jaxrl_variables").exists()
  done, _ = launch(gcloud, *COMMAND, *names, "--dry_run")
  assert done.returncode == 0 and "ecret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
  "step, message",
  [
    ("create", "could not ask for pod (v5p-256 in here)"),
    ("scp", "could not copy the code to pod"),
    ("uv venv", "could not install on pod"),
    ("jaxrl_mm.main", "the run failed on pod"),
  ],
)
@pytest.mark.parametrize("spot", [(), ("--spot",)])
def test_a_step_that_fails_ends_with_its_message(gcloud, step, message, spot):
  states = ("NONE", "ACTIVE") if step == "create" else ("ACTIVE",)
  done, calls = launch(gcloud, *COMMAND, *spot, states=states, fail=(step,))
  assert done.returncode == 1
  assert message in done.stderr
  assert step in " ".join(calls[-1])  # nothing was tried behind it


def test_a_slice_that_is_never_given_is_told(gcloud):
  done, calls = launch(gcloud, *COMMAND, states=("NONE", "FAILED"))
  assert done.returncode == 1
  assert "the run failed on pod (FAILED)" in done.stderr
  assert verbs(calls) == ["create"]


def test_spot_capacity_that_is_taken_away_is_asked_for_again(gcloud):
  states = ("ACTIVE",) * 3 + ("SUSPENDED",) * 2 + ("ACTIVE",)
  done, calls = launch(
    gcloud, *COMMAND, "--spot", states=states, fail=("jaxrl_mm.main",)
  )
  assert done.returncode == 0, done.stderr
  first = ["scp", "ssh", "ssh"]
  assert verbs(calls) == [*first, "delete", "create", *first]
  assert calls[2] == calls[-1]  # the same command: it resumes
  assert "--spot" in calls[4]
  assert "was taken away" in done.stdout


def test_delete_removes_what_was_made(gcloud):
  flags = ("--delete", "--name", "pod", "--zone", "here")
  done, calls = launch(gcloud, *flags)
  assert done.returncode == 0
  (call,) = calls
  assert call[3:] == "delete pod --force --quiet --zone here".split()
  done, _ = launch(gcloud, *flags, fail=("delete",))
  assert (done.returncode, done.stderr) == (
    1,
    "error: could not delete pod\n",
  )


def test_a_dry_run_prints_and_does_nothing(gcloud):
  done, calls = launch(gcloud, *COMMAND, "--spot", "--dry_run")
  assert done.returncode == 0 and not calls
  told = [line for line in done.stdout.splitlines() if line.startswith("+")]
  assert [line.split()[1:5] for line in told] == [
    "gcloud compute tpus queued-resources".split(),
    "git archive --format=tgz --output".split(),
    *["gcloud compute tpus tpu-vm".split()] * 3,
  ]
  assert "--spot" in told[0]


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "--name is missing"),
    (("--name",), "--name needs a value"),
    (("--env",), "--env needs a name"),
    (("--env", "NOWHERE_SET"), "--env NOWHERE_SET: that variable is not set"),
    (("--nam", "x"), "unknown flag --nam"),
    (("nowhere.py", *FLAGS, "--workdir", "w"), "there is no config nowhere.py"),
    (FLAGS, "config is missing"),
  ],
)
def test_a_wrong_flag_is_told(gcloud, arguments, message):
  done, calls = launch(gcloud, *arguments)
  assert done.returncode == 1 and not calls
  assert done.stderr.startswith(f"error: {message}")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="not installed")
def test_the_scripts_are_clean():
  scripts = sorted((ROOT / "launch").glob("*.sh"))
  done = subprocess.run(
    ["shellcheck", *scripts], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout
