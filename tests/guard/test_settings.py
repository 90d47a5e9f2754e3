"""Settings: defaults < `solorun.toml` < environment."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from solorun.errors import BadUsage
from solorun.settings import Settings, state_directory
from solorun.settingsfile import FILE, load


def test_without_a_file_the_defaults_stand_below_the_working_directory(tmp_path: Path) -> None:
    found = load(tmp_path, {})
    assert found.roots == (f"{tmp_path}/results", f"{tmp_path}/kssm/results")
    assert found.settle_s == 0.1


def test_a_file_in_a_directory_above_is_found_and_its_roots_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text('roots = ["runs", "/abs"]\nsilent_floor_s = 10\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = load(below, {})
    assert found.roots == (f"{tmp_path}/runs", "/abs")
    assert (found.silent_floor_s, found.silent_factor) == (10.0, Settings().silent_factor)


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text("settle_s = 1")
    below = tmp_path / "a"
    below.mkdir()
    (below / "solorun.toml").write_text("settle_s = 2")
    assert load(below, {}).settle_s == 2


def test_the_environment_overrules_the_file(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text('roots = ["runs"]')
    assert load(tmp_path, {"SOLORUN_ROOTS": "/a:/b c:"}).roots == ("/a", "/b c")
    assert load(tmp_path, {"SOLORUN_ROOTS": ""}).roots == (f"{tmp_path}/runs",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("settle = 1", "unknown key 'settle'"),
        ('[runs.a]\ncommand = "python3 \'open"', 'runs."a".command: no closing quotation'),
        ("settle_s = -1", "settle_s must be a number"),
        ("settle_s = nan", "settle_s must be a number"),
        ("settle_s = inf", "settle_s must be a number"),
        ('settle_s = "1"', "settle_s must be a number"),
        ("settle_s = true", "settle_s must be a number"),
        ("settle_s = 1979-05-27", "settle_s must be a number"),
        ('roots = "results"', "roots must be a list"),
        ("roots = [1]", "roots must be a list"),
        ("roots = [", "cannot be read"),
        ("[section]\nx = 1", "unknown key 'section'"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_the_file_and_the_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "solorun.toml").write_text(text)
    with pytest.raises(BadUsage, match=r"solorun\.toml") as told:
        load(tmp_path, {})
    assert words in told.value.what


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadUsage, match="cannot be read"):
        load(tmp_path, {})


def test_commands_hosts_and_notifications_are_read(tmp_path: Path) -> None:
    (tmp_path / "solorun.toml").write_text(
        """
        share_accelerator = true
        [runs."results/kssm_v3"]
        command = ["python3", "kssm/train_kssm_v3.py"]
        environment = { OMP_NUM_THREADS = "4" }
        [runs."results/other"]
        command = "sh -c 'exit 3'"
        cwd = "sub"
        [hosts.studio]
        [hosts.box]
        ssh = "ada@box"
        directory = "~/my project"
        command = [".venv/bin/solorun"]
        [[notify]]
        on = ["crash", "hang"]
        command = ["mail", "-s", "run"]
        [[notify]]
        webhook = "https://example.org/hook"
        """
    )
    found = load(tmp_path, {})
    assert found.share_accelerator
    first, second = found.runs
    assert (first.directory, first.command) == (tmp_path / "results/kssm_v3", ("python3", "kssm/train_kssm_v3.py"))
    assert (first.cwd, first.environment) == (tmp_path, {"OMP_NUM_THREADS": "4"})
    assert (second.command, second.cwd) == (("sh", "-c", "exit 3"), tmp_path / "sub")
    assert found.run_entry(tmp_path / "results" / ".." / "results" / "other") == second
    assert found.run_entry(tmp_path / "results") is None
    assert [host.ssh for host in found.hosts] == ["studio", "ada@box"]
    assert found.hosts[1].directory == "~/my project"
    assert found.notify[0].on == {"crash", "hang"}
    assert found.notify[1].on == {"end", "crash", "hang"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("runs = 1", "runs must be a table"),
        ("[runs.a]\ncommand = []", "is empty"),
        ("[runs.a]", "must be a list of texts"),
        ("[runs.a]\ncommand = ['x']\nshell = true", 'unknown key runs."a".shell'),
        ("[runs.a]\ncommand = ['x']\nenvironment = { A = 1 }", "must hold texts"),
        ("[hosts.a]\nssh = '-oProxyCommand=x'", "must be a destination"),
        ("[hosts.a]\nport = 22", "unknown key hosts.a.port"),
        ("[[notify]]\non = ['birthday']\ncommand = ['x']", "unknown occasion 'birthday'"),
        ("[[notify]]\non = ['end']", "needs one of command, webhook, apprise"),
        ("[[notify]]\nwebhook = 'file:///etc/passwd'", "must be an http or https URL"),
        ("[notify]\ncommand = ['x']", "must be a list of tables"),
        ("share_accelerator = 1", "must be true or false"),
    ],
)
def test_a_mistake_in_a_table_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "solorun.toml").write_text(text)
    with pytest.raises(BadUsage) as told:
        load(tmp_path, {})
    assert words in told.value.what


@pytest.mark.parametrize(
    ("environment", "platform", "place"),
    [
        ({"SOLORUN_STATE": "/s", "HOME": "/h"}, "linux", "/s"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "linux", "/x/solorun"),
        ({"HOME": "/h"}, "linux", "/h/.local/state/solorun"),
        ({"XDG_STATE_HOME": "/x", "HOME": "/h"}, "darwin", "/h/Library/Application Support/solorun"),
    ],
)
def test_what_belongs_to_a_user_has_one_place(environment: dict[str, str], platform: str, place: str) -> None:
    assert state_directory(environment, platform) == place


def test_the_example_in_the_documentation_is_right_and_has_every_key(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    example = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "solorun.toml").write_text(example)
    found, plain = load(tmp_path, {}), load(Path("/"), {})
    assert set(tomllib.loads(example)) == set(Settings.__slots__)
    lists = {"roots", "runs", "hosts", "notify"}
    assert all(getattr(found, key) == getattr(plain, key) for key in set(Settings.__slots__) - lists)
    assert found.hosts[0].command == ("~/kssm/.venv/bin/solorun",)
    assert len(found.notify) == 3


def _foreign(tmp_path: Path) -> Path:
    """A project of another user's, below a directory that anybody may enter."""
    (tmp_path / "theirs" / "deep").mkdir(parents=True)
    (tmp_path / "theirs" / FILE).write_text('roots = ["theirs"]\n[[notify]]\ncommand = ["./evil"]\n')
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(tmp_path / "theirs" / FILE, 65534, 65534)
    return tmp_path / "theirs"


def test_another_users_file_in_a_directory_above_runs_nothing_and_stands_in_nobodys_way(tmp_path: Path) -> None:
    place = _foreign(tmp_path)
    said: list[str] = []
    assert load(place / "deep", {}, said.append).notify == ()
    assert len(said) == 1
    assert f"passed over {place / FILE}: it belongs to another user (uid 65534)" in said[0]
    (tmp_path / FILE).write_text('roots = ["mine"]')
    assert load(place / "deep", {}).roots == (str(tmp_path / "mine"),), "one's own further up counts"
    assert load(place / "deep", {"SOLORUN_TRUST": f"/nowhere:{place}"}).notify[0].command == (str(place / "./evil"),)
    assert load(place / "deep", {"SUDO_UID": "65534"}).notify, "who became root by sudo has run it as root"


def test_a_file_that_anybody_may_write_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('roots = ["theirs"]')
    (tmp_path / FILE).chmod(0o666)
    said: list[str] = []
    assert load(tmp_path, {}, said.append).roots != (str(tmp_path / "theirs"),)
    assert "anybody may write it" in said[0]


@pytest.mark.parametrize("way", ["symbolic", "hard"])
def test_ones_own_file_under_a_name_that_another_user_made_is_passed_over(tmp_path: Path, way: str) -> None:
    place = _foreign(tmp_path)
    (place / FILE).unlink()
    (tmp_path / "own.toml").write_text('[[notify]]\ncommand = ["./tell"]\n')
    if way == "symbolic":
        (place / FILE).symlink_to(tmp_path / "own.toml")
        os.lchown(place / FILE, 65534, 65534)
    else:
        os.link(tmp_path / "own.toml", place / FILE)
        os.chown(place, 65534, 65534)
    assert load(place, {}).notify == (), "./tell would be theirs"
