"""The files people launch with: they parse, and what they name exists."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from tiny import ROOT

from configs import segmenter
from mlseg_jax.cli.flags import FLAGS

LAUNCH = sorted((ROOT / "launch").iterdir())
SCRIPTS = [path for path in LAUNCH if path.suffix == ".sh"]
JOBS = [path for path in LAUNCH if path.suffix == ".yaml"]
IMAGES = [path for path in LAUNCH if path.suffix == ".Dockerfile"]


def test_every_file_is_of_a_known_kind():
    assert {*SCRIPTS, *JOBS, *IMAGES} == set(LAUNCH)


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: path.name)
def test_what_launch_files_name_exists(path):
    text = path.read_text()
    keys = segmenter.get_config().to_dict()
    for name in re.findall(r"--config\.([\w.]+)=", text):
        value = keys
        for part in name.split("."):
            value = value[part]
    for name in re.findall(r"launch/[\w.]+\w", text.replace("[l]", "l")):
        assert (ROOT / name).exists(), name
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = extras["project"]["optional-dependencies"]
    text = text.replace("${CUDA}", "cuda12")
    for names in re.findall(r"\.\[([\w,]+)\]", text) + re.findall(r"CUDA=(\w+)", text):
        assert set(names.split(",")) <= set(extras), names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_can_be_started(path):
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_jobs_are_complete(path):
    spec = yaml.safe_load(path.read_text())["spec"]
    assert spec["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1]
    container = job["template"]["spec"]["containers"][0]
    assert all((ROOT / each).exists() for each in container["command"] if "." in each)
    assert "JAX_COMPILATION_CACHE_DIR" in {each["name"] for each in container["env"]}
    for argument in container["args"][1:]:
        name = argument.lstrip("-").partition("=")[0]
        assert name in FLAGS or name.startswith("config"), name


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_are_made_of_what_is_there(path):
    """A small lint; building them needs Docker and a network."""
    text = re.sub(r"\\\n", " ", path.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = [line.split(maxsplit=1) for line in lines]
    assert words[0][0] == "FROM" and re.fullmatch(r"[\w/]+:[\w.-]+", words[0][1])
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT", "CMD"}
    assert {instruction for instruction, _ in words} <= known
    ignored = (ROOT / ".dockerignore").read_text().split()
    for instruction, rest in words:
        if instruction == "COPY":
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources)
            assert not set(sources) & set(ignored)
        if instruction in ("ENTRYPOINT", "CMD"):
            command = yaml.safe_load(rest)  # The form of JSON, without a shell.
            assert all((ROOT / name).exists() for name in command if "." in name)


def given(script: str, variable: str) -> str:
    """The flags that a script hands on."""
    environment = {k: v for k, v in os.environ.items() if k != variable}
    command = [ROOT / "launch" / script, "printenv", variable]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_jaxlib_knows_the_flags_for_gpus():
    """It refuses one that it does not know, also where there is no GPU."""
    program = [sys.executable, "-c", "import jax; jax.devices()"]
    flags = given("gpu.sh", "XLA_FLAGS")
    assert "latency_hiding" in flags
    for more, ends in (("", True), (" --xla_gpu_no_such_flag=true", False)):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags + more}
        done = subprocess.run(program, env=environment, capture_output=True)
        assert (done.returncode == 0) == ends, done.stderr


def test_libtpu_knows_the_flags_for_tpus():
    libtpu = pytest.importorskip("libtpu")
    library = pathlib.Path(libtpu.__file__).parent / "libtpu.so"
    names = re.findall(r"--(\w+)=", given("tpu.sh", "LIBTPU_INIT_ARGS"))
    assert len(names) > 5
    for name in names:
        subprocess.run(["grep", "-qaF", "-m1", name, library], check=True)


@pytest.mark.parametrize(
    "codes, runs, last",
    [
        ([75, 137, 0], 3, 0),
        ([75, 1, 0], 2, 1),
        ([127, 0], 1, 127),
        ([75, 75, 75, 75, 0], 4, 75),
    ],
)
def test_a_command_is_started_again(tmp_path, codes, runs, last):
    (tmp_path / "codes").write_text("\n".join(map(str, codes)) + "\n")
    once = 'code=$(head -n 1 codes); sed -i 1d codes; echo run; exit "$code"'
    done = subprocess.run(
        [ROOT / "launch/again.sh", "bash", "-c", once],
        cwd=tmp_path, env={**os.environ, "RESTARTS": "3", "BACKOFF": "0"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout.count("run"), done.returncode) == (runs, last), done.stderr


def fake(path, text):
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def train_on_pod(tmp_path, host, workdir, *flags):
    """What a host of a pod that has ``host`` in place of `again.sh` says."""
    (tmp_path / "mlseg/launch").mkdir(parents=True)
    fake(tmp_path / "mlseg/launch/again.sh", host)
    fake(tmp_path / "gcloud", 'exec bash -c "${8#--command=}"')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "n", "ZONE": "z"}
    return subprocess.run(
        [ROOT / "launch/tpu_pod.sh", "train", *flags], cwd=tmp_path,
        env=environment | {"WORKDIR": workdir}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_tpu_pod_trains_behind_a_log_that_is_shown(tmp_path):
    host = 'sleep 0.3; echo "$@"; exit 9'
    done = train_on_pod(tmp_path, host, "gs://b/r", "--config=a b")
    assert done.returncode == 9, done.stderr
    assert "--workdir=gs://b/r --config=a b" in done.stdout
    assert done.stdout == (tmp_path / "mlseg/train.log").read_text()


def test_a_tpu_pod_needs_no_flags_to_go_on(tmp_path):
    train_on_pod(tmp_path, 'echo "${@: -1} $JAX_COMPILATION_CACHE_DIR"', "gs://b/r/")
    log = (tmp_path / "mlseg/train.log").read_text()
    assert log == "--workdir=gs://b/r gs://b/compiled\n"


def test_processes_write_beside_a_work_directory_with_a_slash(tmp_path):
    fake(tmp_path / "python", 'echo "$3"')
    done = subprocess.run(
        [ROOT / "launch/local_processes.sh", "2", "new/run/"], cwd=tmp_path,
        env=os.environ | {"PYTHON": str(tmp_path / "python")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "--workdir=new/run\n"), done.stderr
    names = [path.name for path in sorted((tmp_path / "new").iterdir())]
    assert names == ["run-0.log", "run-1.log"]


@pytest.mark.parametrize(
    "code, place, queued",
    [
        *((75, "new/run/", 1), (75, "file/run", 1), (1, "new/run", 0)),
        *((0, "new/run", 1), (0, "evaluated", 1), (0, "ended", 0)),
    ],
)
def test_a_job_of_slurm_queues_again(tmp_path, code, place, queued):
    """Also where nothing can be written beside the work directory, and where `evaluate`
    has written scores of a training that is not at its end.
    """
    (tmp_path / "file").write_text("")
    for name in ("evaluated/metrics.json", "ended/metrics.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    (tmp_path / "evaluated/training.unfinished").write_text("")
    fake(tmp_path / "srun", f"exit {code}")
    fake(tmp_path / "scontrol", 'echo "$@"')
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        [ROOT / "launch/slurm.sh", f"{tmp_path}/{place}"], env=path | {"BACKOFF": "0"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout == "requeue 7\n" * queued, done.stderr
    assert (tmp_path / "new/run.failures").exists() == (code == 75 and place[0] == "n")


@pytest.mark.parametrize("later", [0.0, 0.5])
def test_a_command_that_is_asked_to_stop_is_not_started_again(later):
    """``later``: seconds that the script loses, in which the command ends."""
    saves = (
        'trap "echo saved; exit 75" TERM; echo ready; while true; do sleep 0.05; done'
    )
    slow = {"BASH_FUNC_kill%%": f'() {{ builtin kill "$@" && sleep {later}; }}'}
    with subprocess.Popen(
        [ROOT / "launch/again.sh", "bash", "-c", saves],
        stdout=subprocess.PIPE, text=True, env=os.environ | slow,
    ) as again:  # fmt: skip
        assert again.stdout.readline() == "ready\n"
        again.terminate()
        assert again.stdout.readline() == "saved\n"
    assert again.returncode == 75
