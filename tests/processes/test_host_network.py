"""Two hosts and one shared directory: a cut link, a crash, a reboot. Unreachable is never dead."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guard.stage import names, run_record, snapshot, wait_until

from .conftest import progress_of, until
from .farhosts import Network, why_not
from .sshd import settings_file, short_place

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
SOLORUN = [sys.executable, "-P", "-m", "solorun"]
TRAINER = """
import sys, time, solorun
with solorun.hold(sys.argv[1]) as run:
    step = 0
    while not run.should_stop:
        step += 1
        run.progress(step, 1000000)
        time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with short_place() as sockets:
        made = Network(tmp_path_factory.mktemp("network"), sockets, "alpha", "beta")
        yield made
        made.remove()


@pytest.fixture
def says(network: Network, tmp_path: Path) -> Any:
    """What a command printed, once it has ended with this exit status."""
    own = [f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", f"SOLORUN_STATE={tmp_path}/far state"]
    settings_file(tmp_path, "alpha", "beta", command=["env", *own, *SOLORUN])
    env = {**os.environ, **network.environment, "SOLORUN_STATE": str(tmp_path / "state")}

    def run(*words: str, code: int = 0) -> str:
        told = subprocess.run(
            [*SOLORUN, *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
        assert told.returncode == code, (told.returncode, told.stdout, told.stderr)
        return told.stdout + told.stderr

    return run


def hosts_of(said: str) -> dict[str, dict[str, Any]]:
    return {host["name"]: host for host in json.loads(said)["hosts"]}


def test_a_cut_link_is_unreachable_with_what_was_last_seen_and_heals_by_itself(network: Network, says: Any) -> None:
    trainer = ["--", sys.executable, "-c", TRAINER, "results/far"]
    says("start", "--host", "beta", "--background", "results/far", *trainer)
    assert says("status", "--all-hosts").count("running") >= 1
    assert all(host["reachable"] for host in hosts_of(says("status", "--all-hosts", "--json")).values())
    network.hosts["beta"].cut()
    said = says("status", "--all-hosts", "--exit-code", code=6)
    assert "last seen running" in said
    assert re.search(r"last seen \d+ s ago; unreachable is not dead", said)
    assert "host beta cannot be reached" in said or "the connection to host beta was lost" in said
    assert "host alpha" not in said
    says("stop", "--host", "beta", "results/far", code=6)
    network.hosts["beta"].heal()
    wait_until(lambda: hosts_of(says("status", "--all-hosts", "--json"))["beta"]["reachable"])
    assert "last seen" not in says("status", "--all-hosts", "--exit-code")
    assert "stopped at step" in says("stop", "--host", "beta", "results/far")


def test_a_directory_of_another_host_is_refused_untouched_even_when_that_host_has_crashed(
    network: Network, says: Any, tmp_path: Path
) -> None:
    shared = tmp_path / "results" / "shared"
    trainer = ["--", sys.executable, "-c", TRAINER, "results/shared"]
    says("start", "--host", "alpha", "--background", "results/shared", *trainer)
    # Before its first step the trainer itself puts its name into label and record.
    until(lambda: (beat := progress_of(shared)) is not None and beat.step > 0)
    kept = ("training.lock", "training.owner.json", "run.json")

    def lock() -> dict[str, object]:
        found = snapshot(shared)
        return {name: found[name] for name in kept}

    before = lock()
    for crashed in (False, True):
        if crashed:
            network.hosts["alpha"].crash()
        assert "on host alpha" in says("start", "--host", "beta", "results/shared", "--", "touch", "pwned", code=7)
        says("stop", "--host", "beta", "results/shared", code=7)
        says("check", "--host", "beta", "results/shared", code=4)
        assert "foreign" in says("status", "--host", "beta", "results/shared")
        assert lock() == before
    assert not (tmp_path / "pwned").exists()
    network.hosts["alpha"].boot()
    assert "stale" in says("status", "--host", "alpha", "results/shared")
    says("start", "--host", "alpha", "results/shared", "--", "true")  # no hand on the lock after a reboot
    assert run_record(shared)["state"] == "completed"
    assert not {"training.lock", "training.owner.json"} & names(shared)
