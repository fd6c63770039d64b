"""Everything that Dockerfile and compose.yaml name exists: variables, flags, paths, stages, settings of Redis.

No container is run here. What they would run is run directly instead: the worker's program and a real redis-server.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops import redis_server
from producer.address import redact
from worker.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
WORKER, REDIS = COMPOSE["services"]["worker"], COMPOSE["services"]["redis"]
UNITS = {"b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's stages by name, each with its instructions and those of the stages it is made from."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in filter(str.strip, text.splitlines()):
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            parent, _, name = rest.split()
            found[name] = current = list(found.get(parent, []))
        else:
            current.append((word, rest))
    return found


STAGES = stages()
IMAGES = ["worker", "worker-cpu"]


def rest_of(stage: str, word: str) -> list[str]:
    return [rest for instruction, rest in STAGES[stage] if instruction == word]


def last_of(stage: str, word: str) -> str:
    return rest_of(stage, word)[-1]


def image_environment(stage: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in rest_of(stage, "ENV") for pair in rest.split())


MOUNTED = {target: source for source, target, *_ in (v.split(":") for v in REDIS["volumes"]) if source.startswith(".")}


def here(path: str) -> Path:
    """The file of this tree that a container sees at `path`."""
    (folder,) = (folder for folder in MOUNTED if path.startswith(f"{folder}/"))
    return ROOT / MOUNTED[folder] / path.removeprefix(f"{folder}/")


def redis_flags() -> dict[str, str]:
    """The settings compose.yaml gives to redis-server beside its file, by name; as they are outside of a container."""
    program, _, *words = REDIS["command"]
    assert program == "redis-server"
    assert all(word.startswith("--") for word in words[::2])
    flags = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    assert flags.pop("dir") in [volume.split(":")[1] for volume in REDIS["volumes"]]
    return {**flags, "aclfile": str(here(flags["aclfile"])), "bind": "127.0.0.1"}


@pytest.fixture
def composed_redis() -> Iterator[redis_server.RedisServer]:
    """A real redis-server with the file, the users and the settings of compose.yaml."""
    conf = here(REDIS["command"][1]).read_text()
    with redis_server.launch(redis_flags(), conf=conf, login=("operator", "operator")) as server:
        yield server


def in_bytes(value: str) -> str:
    """Redis's way to say a size ("1gb"), as its CONFIG GET answers; anything else as it is."""
    match = re.fullmatch(r"(\d+)([a-z]+)", value)
    return str(int(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else value


def worker_program(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what the image runs, with these SLIPSTREAM_ variables and no others."""
    entry = json.loads(last_of("worker-cpu", "ENTRYPOINT"))
    assert entry[0] == "python"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLIPSTREAM_")}
    command = [sys.executable, *entry[1:], *arguments]
    return subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, check=False)


def test_compose_builds_an_image_that_is_there():
    """The targets `worker` and `worker-cpu` exist, and compose.yaml builds one of them."""
    assert set(IMAGES) <= set(STAGES)
    assert WORKER["build"]["target"] in IMAGES


@pytest.mark.parametrize("image", IMAGES)
def test_every_file_an_image_copies_is_in_the_tree_and_in_the_build_context(image: str):
    """Each source of a COPY exists, and .dockerignore lets it through."""
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sources = [source for rest in rest_of(image, "COPY") for source in rest.split()[:-1]]
    assert {"producer", "kernels", "worker"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        verdicts = [line for line in ignore if fnmatch.fnmatch(source, line.removeprefix("!"))]
        assert not verdicts or verdicts[-1].startswith("!"), f".dockerignore keeps {source} out"


@pytest.mark.parametrize("image", IMAGES)
def test_every_variable_is_a_setting_the_worker_takes(image: str):
    """The worker accepts all SLIPSTREAM_ variables of image and compose.yaml together, and reads each one's value."""
    environment = {
        name: str(value)
        for name, value in {**image_environment(image), **WORKER["environment"]}.items()
        if name.startswith("SLIPSTREAM_")
    }
    fields = {f"SLIPSTREAM_{name.upper()}": name for name in Settings.model_fields}
    assert set(environment) <= set(fields), "not a setting of the worker"

    answer = worker_program(environment, *WORKER.get("command", []), "--print-config")
    assert answer.returncode == 0, answer.stderr
    read: dict[str, Any] = json.loads(answer.stdout)
    for variable, value in environment.items():
        assert str(read[fields[variable]]).removesuffix(".0") == redact(value), variable


def test_every_other_variable_of_compose_is_one_that_is_used():
    """A variable that is taken from the user's environment has a default, or is an argument of the image's build."""
    text = re.sub(r"#.*", "", (ROOT / "compose.yaml").read_text())
    for name, default in re.findall(r"\$\{(\w+)([^}]*)\}", text):
        assert default.startswith(":-"), f"{name} has no default"
    arguments = {rest.split("=")[0] for rest in rest_of(WORKER["build"]["target"], "ARG")}
    assert set(WORKER["build"]["args"]) <= arguments


def test_every_path_and_volume_of_compose_exists():
    """Bind mounts are in the tree, named volumes are declared, and the model is mounted where the worker looks."""
    for service in (WORKER, REDIS):
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
    targets = {volume.split(":")[1]: volume.split(":")[0] for volume in WORKER["volumes"]}
    assert (ROOT / targets[WORKER["environment"]["SLIPSTREAM_MODEL"]] / "config.json").exists()


def test_redis_takes_every_setting_and_keeps_what_it_is_given(composed_redis: redis_server.RedisServer):
    """A real redis-server starts with compose.yaml's settings and answers with the same; nothing is ever evicted."""
    wanted = {**redis_flags(), "appendonly": "yes", "maxmemory-policy": "noeviction"}
    with redis.Redis(
        port=composed_redis.port, username="operator", password="operator", decode_responses=True
    ) as client:
        for name, value in wanted.items():
            assert client.config_get(name) == {name: in_bytes(value)}


def test_every_login_of_compose_is_one_of_its_redis(composed_redis: redis_server.RedisServer):
    """The worker's, that of the health check, and the one its first lines tell; and none is open to anybody."""
    said = (ROOT / "compose.yaml").read_text()
    logins = re.findall(r"redis://(\w+):(\w+)@", said) + re.findall(r"--user (\w+) --pass (\w+)", said)
    assert {name for name, _ in logins} == {"worker", "producer", "operator"}
    for name, password in logins:
        with redis.Redis(port=composed_redis.port, username=name, password=password) as client:
            assert client.ping()
    once = Retry(NoBackoff(), 0)  # a refused login is no better the fourth time
    with redis.Redis(port=composed_redis.port, retry=once) as nobody, pytest.raises(redis.AuthenticationError):
        nobody.ping()


def test_any_number_of_workers_waits_for_a_redis_that_answers():
    """Workers have no name and no port of their own, find Redis by its service's name, and start once it is healthy."""
    assert "container_name" not in WORKER
    assert "ports" not in WORKER
    assert WORKER["environment"]["SLIPSTREAM_REDIS"].endswith("@redis:6379/0")
    assert WORKER["depends_on"]["redis"]["condition"] == "service_healthy"
    assert re.search(r"redis-cli .*ping \| grep -q PONG", " ".join(REDIS["healthcheck"]["test"]))


def test_redis_is_open_to_this_machine_alone():
    """With passwords that anybody can guess the port is bound to loopback."""
    assert all(port.startswith("127.0.0.1:") for port in REDIS["ports"])


def test_a_stopped_worker_has_time_to_drain():
    """The container is killed some seconds after the drain's grace has run out, not before."""
    grace = float(WORKER["environment"]["SLIPSTREAM_DRAIN_GRACE_S"])
    assert float(WORKER["stop_grace_period"].removesuffix("s")) >= grace + 10
    assert {last_of(image, "STOPSIGNAL") for image in IMAGES} == {"SIGTERM"}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_can_compile_what_the_worker_compiles_at_its_start(image: str):
    """A C compiler is in the image, and the worker's user has a home to keep the result in."""
    commands = " ".join(rest_of(image, "RUN"))
    assert re.search(r"apt-get install .*\bgcc\b.*\blibc6-dev\b", commands)
    assert re.search(r"useradd .*--create-home", commands)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_does_not_run_as_root(image: str):
    """The last USER is one that the image makes."""
    user = last_of(image, "USER")
    assert user not in ("root", "0")
    assert any(re.search(rf"useradd .*\b{user}\b", rest) for rest in rest_of(image, "RUN"))


def test_the_health_check_tells_a_live_worker_from_a_stuck_one(tmp_path: Path):
    """What HEALTHCHECK runs succeeds on a fresh health file and fails on an old one and on none."""
    checks = {last_of(image, "HEALTHCHECK").split("CMD ", 1)[1] for image in IMAGES}
    (check,) = map(json.loads, checks)
    entry = json.loads(last_of("worker-cpu", "ENTRYPOINT"))
    assert check[: len(entry)] == entry
    assert "SLIPSTREAM_HEALTH_FILE" in image_environment("worker-cpu")

    file = tmp_path / "healthy"
    environment = {"SLIPSTREAM_HEALTH_FILE": str(file)}
    assert worker_program(environment, *check[len(entry) :]).returncode == 1
    file.touch()
    assert worker_program(environment, *check[len(entry) :]).returncode == 0
    long_ago = time.time() - 3600
    os.utime(file, (long_ago, long_ago))
    assert worker_program(environment, *check[len(entry) :]).returncode == 1


def test_hugging_faces_kernels_stay_out_of_the_image():
    """Nothing that is pinned brings the package `kernels`, and a build that got it otherwise fails."""
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert "transformers" in pinned
    assert "kernels" not in pinned
    for image in IMAGES:
        assert "! pip show --quiet kernels" in rest_of(image, "RUN")
