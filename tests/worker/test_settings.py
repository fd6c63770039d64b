"""A worker's settings: where they come from, what is refused, and how that is said."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.__main__ import main


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests has no say."""
    for name in [name for name in os.environ if name.startswith("SLIPSTREAM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `--print-config` prints for these flags."""

    def print_config(*flags: str) -> dict[str, Any]:
        assert main(["--model", "some/model", *flags, "--print-config"]) == 0
        settings: dict[str, Any] = json.loads(capsys.readouterr().out)
        return settings

    return print_config


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a worker says that refuses its settings: exit code 2, nothing on stdout."""

    def refused(*flags: str) -> str:
        assert main([*flags]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return refused


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a TOML file and name it in SLIPSTREAM_CONFIG."""

    def write(text: str) -> Path:
        path = tmp_path / "worker.toml"
        path.write_text(text)
        monkeypatch.setenv("SLIPSTREAM_CONFIG", str(path))
        return path

    return write


def test_print_config_shows_every_setting_as_json(printed):
    """What would be used is printed, defaults included, and nothing is started."""
    settings = printed()
    assert (settings["model"], settings["queue"], settings["max_rows"]) == ("some/model", "default", 64)
    assert settings["redis"] == "redis://127.0.0.1:6379/0"


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(printed, write_config, monkeypatch):
    """Each source is overridden by the one before it."""
    assert printed()["max_rows"] == 64
    write_config("max_rows = 1\ntoken_budget = 700")
    assert printed()["max_rows"] == 1
    monkeypatch.setenv("SLIPSTREAM_MAX_ROWS", "2")
    assert printed()["max_rows"] == 2
    assert printed("--max-rows", "3")["max_rows"] == 3
    assert printed("--max-rows", "3")["token_budget"] == 700


def test_the_password_stays_out_of_print_config(printed):
    """A configuration is shown to people; the secret in the URL is not."""
    assert printed("--redis", "redis://user:secret@example.org/0")["redis"] == "redis://user:***@example.org/0"


def test_without_a_model_it_says_how_to_name_one(complaint):
    """The one setting that has no default is asked for by flag and variable."""
    assert complaint() == "slipstream worker: model is not set: give --model or SLIPSTREAM_MODEL\n"


def test_each_bad_setting_has_a_line_of_its_own(complaint):
    """Which setting, what it may be, what it was; all of them at once."""
    said = complaint("--model", "m", "--max-rows", "0", "--lease-s", "0.1", "--queue", "two words").splitlines()
    assert [line.split(":")[1].strip() for line in said] == ["queue", "max_rows", "lease_s"]
    assert said[1].endswith("greater than or equal to 1; got '0'")


@pytest.mark.parametrize("value", ["many", "1.5", "nan"])
def test_what_is_no_number_is_refused(complaint, value):
    """A setting's type is checked, and what was given is repeated."""
    said = complaint("--model", "m", "--max-rows", value)
    assert said.startswith("slipstream worker: max_rows: ")
    assert repr(value) in said


def test_a_variable_is_checked_as_a_flag_is(complaint, monkeypatch):
    """The environment gets no leniency."""
    monkeypatch.setenv("SLIPSTREAM_LEASE_S", "0")
    assert complaint("--model", "m").startswith("slipstream worker: lease_s: ")


def test_a_misspelt_variable_is_refused_and_the_right_one_named(complaint, monkeypatch):
    """It would otherwise be passed over in silence, and the default used."""
    monkeypatch.setenv("SLIPSTREAM_MAX_ROW", "4")
    assert "SLIPSTREAM_MAX_ROW is no setting; is SLIPSTREAM_MAX_ROWS meant?" in complaint("--model", "m")


def test_variables_that_are_none_of_its_business_are_left_alone(printed, monkeypatch):
    """Kubernetes makes variables from the names of services."""
    monkeypatch.setenv("SLIPSTREAM_REDIS_SERVICE_HOST", "10.0.0.7")
    monkeypatch.setenv("SLIPSTREAM_REDIS_PORT", "tcp://10.0.0.7:6379")
    assert printed()["redis"] == "redis://127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("ftp://anna:secret@b", "redis: a scheme is one of redis, rediss"),
        ("redis+sentinel://anna:secret@b", "redis: after the Sentinels stands the name of the service"),
        ("redis://anna:secret@b?ssl_ca_certs=/ca.pem", "redis: ssl_ca_certs is for TLS"),
    ],
)
def test_a_wrong_url_is_a_wrong_setting_and_keeps_its_password(complaint, url, says):
    """What is wrong with it is said at once, by what it got less the password; also where another setting is wrong."""
    said = complaint("--model", "m", "--redis", url)
    assert says in said
    assert "anna:***@b" in said
    other = complaint("--model", "m", "--redis", "redis://anna:secret@b", "--partition", "4")
    assert "secret" not in said + other


def test_partitions_are_the_producers_setting_too(printed, complaint, monkeypatch):
    """One variable says to both how many a queue has; a worker serves all of them, or the one it is told."""
    monkeypatch.setenv("SLIPSTREAM_PARTITIONS", "4")
    assert (printed()["partitions"], printed()["partition"], printed("--partition", "3")["partition"]) == (4, None, 3)
    assert "partition: expected one below partitions (4), got 4" in complaint("--model", "m", "--partition", "4")


def test_an_unknown_name_in_the_file_is_refused_with_the_known_ones(complaint, write_config):
    """A file is all ours, so whatever is not known in it is a mistake."""
    path = write_config("max_row = 4")
    said = complaint("--model", "m")
    assert f"{path}: unknown settings max_row; known: model, " in said


@pytest.mark.parametrize("text", ["max_rows = ", None])
def test_a_file_that_can_not_be_read_is_one_line(complaint, write_config, text):
    """It is named, with what is wrong with it."""
    path = write_config(text or "")
    if text is None:
        path.unlink()
    said = complaint("--model", "m")
    assert said.startswith(f"slipstream worker: SLIPSTREAM_CONFIG={path} can't be read: ")
    assert said.count("\n") == 1


def test_an_unknown_flag_ends_with_exit_code_2(capsys):
    """The command line's own way: usage, the flag, exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(["--model", "m", "--max-row", "4"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --max-row" in capsys.readouterr().err
