"""What a child may use, and what it may see of others."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from conftest import NASTY, Bridge, alive, drop_capabilities, environment, eventually
from gatehouse_bridge.cgroup import Groups, _mount

Start = Callable[..., Bridge]
MIB = 1024 * 1024


# covers: child-limits
async def test_a_child_that_eats_memory_is_stopped_and_no_other(start: Start) -> None:
    bridge = start(BRIDGE_CHILD_MEMORY=128 * MIB, BRIDGE_CHILD_PROCESSES=64)
    assert bridge.health["limits"] == {"memory": "rlimit", "processes": "none"}
    greedy, other = await bridge.open("local:ana"), await bridge.open("local:bob")
    assert await greedy.call("eat", bytes=16 * MIB) == str(16 * MIB)
    assert await greedy.call("eat", bytes=256 * MIB) == "no more memory"
    assert await other.call("echo", text="unhurt") == "unhurt"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup that is delegated as systemd delegates one.

    Where this machine has none that may be divided (cgroup v1, a container), the bridge has none either: what then holds is
    tested above, without it.
    """
    mount = _mount(Path("/proc/self/mountinfo").read_text().splitlines())
    if mount is None:
        pytest.skip("no cgroup2 is mounted")
    path = Path(mount[1], f"gatehouse-test-{os.getpid()}")
    try:
        path.mkdir()
        os.setxattr(path, "user.delegate", b"1")
    except OSError as error:
        pytest.skip(f"a cgroup cannot be made: {error.strerror}")
    yield path
    (path / "cgroup.kill").write_text("1")
    eventually(lambda: "populated 0" in (path / "cgroup.events").read_text())
    for below in path.iterdir():
        if below.is_dir():
            below.rmdir()
    path.rmdir()


# covers: child-limits, tree
async def test_each_child_has_a_cgroup_that_goes_with_it(start: Start, cgroup: Path) -> None:
    enter = partial((cgroup / "cgroup.procs").write_text, "0")
    bridge = start(before=enter, BRIDGE_CHILD_PROCESSES=50, BRIDGE_WARM=0, BRIDGE_IDLE_SECONDS=2)
    there = "pids" in (cgroup / "cgroup.controllers").read_text().split()
    assert bridge.health["limits"] == {"processes": "cgroup" if there else "none"}
    # Who is connected is not idle, however long a loaded machine takes.
    first = await bridge.open()
    async with first.stream():
        second = await bridge.open()
        async with second.stream():
            spawned = json.loads(await first.call("spawn"))
            groups = {
                path.name: (path / "cgroup.procs").read_text().split() for path in cgroup.glob("child-*")
            }
            assert sorted(map(len, groups.values())) == [1, 5]
            pid = await first.call("pid")
            own = next(name for name, pids in groups.items() if pid in pids)
            if there:
                assert (cgroup / own / "pids.max").read_text() == "50\n"
            # Nor may a child lift its own limits.
            path = str(cgroup / own / "cgroup.max.depth")
            assert await first.call("write", path=path, text="7") == "PermissionError"
            # An orphan that hides whose it is is known by its cgroup, and lives as long as its child.
            await asyncio.sleep(3)
            assert all(map(alive, spawned))
            assert await first.delete() == 204
            eventually(lambda: not any(map(alive, spawned)))
            eventually(lambda: len([*cgroup.glob("child-*")]) == 1)
            assert await second.call("echo", text="unhurt") == "unhurt"
    bridge.stop()
    assert not [*cgroup.glob("child-*")]


# covers: child-limits
def test_what_is_asked_of_the_kernel(tmp_path: Path) -> None:
    groups = Groups(tmp_path, memory=64 * MIB, processes=10, cpu=0.5)
    assert (tmp_path / "bridge" / "cgroup.procs").read_text() == "0"
    assert groups.limits == {
        "memory.max": str(64 * MIB),
        "memory.oom.group": "1",
        "pids.max": "10",
        "cpu.max": "50000 100000",
    }
    assert groups.held == {"memory", "processes", "cpu"}


async def secret_bridge(start: Start, folder: Path) -> Bridge:
    (folder / "per_user.json").write_text(
        json.dumps({"local:ana": {"TOKEN": "anas-secret"}, "local:bob": {"TOKEN": "bobs-secret"}})
    )
    (folder / "SHARED").write_text("for-all")
    return start(
        CREDENTIALS=str(folder),
        BRIDGE_SECRETS=["SHARED"],
        BRIDGE_SECRETS_PER_USER=["TOKEN"],
        before=drop_capabilities,
    )


# covers: own-credentials
async def test_a_childs_secrets_are_its_users_own(start: Start, tmp_path: Path) -> None:
    bridge = await secret_bridge(start, tmp_path)
    for user, secret in (("local:ana", "anas-secret"), ("local:bob", "bobs-secret")):
        variables = json.loads(await (await bridge.open(user)).call("env"))
        assert (variables["TOKEN"], variables["SHARED"]) == (secret, "for-all")
        response = await bridge.stateless("tools/call", {"name": "env", "arguments": {}}, user)
        text = response.json()["result"]["content"][0]["text"]
        assert json.loads(text)["TOKEN"] == secret
    session = await bridge.open("local:ana")
    await session.call("say", text="it is anas-secret, not bobs-secret")
    eventually(lambda: "it is ***, not ***" in bridge.log)
    assert "s-secret" not in bridge.log
    command_line = Path(f"/proc/{await session.call('pid')}/cmdline").read_text()
    assert "secret" not in command_line


# covers: own-credentials
@pytest.mark.parametrize("user", ["local:eve", "", "local:ana, local:bob"])
async def test_who_has_no_secret_is_told_what_is_missing(start: Start, tmp_path: Path, user: str) -> None:
    bridge = await secret_bridge(start, tmp_path)
    refusals = [await bridge.session(user).initialize(), await bridge.stateless("tools/list", user=user)]
    for response in refusals:
        error = response.json()["error"]
        assert error["data"] == {"reason": "no_credentials", "missing": ["TOKEN"]}
        assert "TOKEN" in error["message"]
    # None was started, not even ahead of need.
    assert bridge.health["children"] == 0


# covers: own-credentials
async def test_a_secret_for_all_serves_who_has_none_of_his_own(start: Start, tmp_path: Path) -> None:
    (tmp_path / "per_user.json").write_text(json.dumps({"okta:a%b": {"TOKEN": "anas-secret"}}))
    (tmp_path / "TOKEN").write_text("for-all")
    bridge = start(CREDENTIALS=str(tmp_path), BRIDGE_SECRETS=["TOKEN"], BRIDGE_SECRETS_PER_USER=["TOKEN"])
    # As the gateway writes a name into a header.
    assert json.loads(await (await bridge.open("okta:a%25b")).call("env"))["TOKEN"] == "anas-secret"
    assert json.loads(await (await bridge.open("local:bob")).call("env"))["TOKEN"] == "for-all"


# covers: own-credentials
async def test_no_child_reaches_another_users_secret(start: Start, tmp_path: Path) -> None:
    credentials, state = tmp_path / "credentials", tmp_path / "state"
    credentials.mkdir()
    state.mkdir()
    bridge = await secret_bridge(start, credentials)
    ana, bob = await bridge.open("local:ana"), await bridge.open("local:bob")
    bobs = int(await bob.call("pid"))
    assert "anas-secret" in await ana.call("read", path="/proc/self/environ")
    for path in (
        f"/proc/{bobs}/environ",
        f"/proc/{bobs}/mem",
        f"/proc/{bridge.process.pid}/environ",
        f"/proc/{bridge.process.pid}/mem",
        str(credentials / "per_user.json"),
        str(credentials / "SHARED"),
        f"/proc/{bridge.process.pid}/root{credentials}/per_user.json",
    ):
        assert await ana.call("read", path=path) == "PermissionError", path
    # What is anybody's is anybody's still.
    assert "root" in await ana.call("read", path="/etc/passwd")
    assert await ana.call("write", path=str(state / "note"), text="x") == "written"
    if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12):
        assert await ana.call("signal", pid=bobs, number=int(signal.SIGKILL)) == "PermissionError"
    assert await bob.call("echo", text="unhurt") == "unhurt"


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        ('{"local:ana": {"TOKEN": "x"}}', {"BRIDGE_ISOLATION": "shared"}, "needs the isolation per_user"),
        ("tell-no-one", {}, "the credential per_user.json must be a JSON object"),
        ('{"local:ana": {"OTHER": "tell-no-one"}}', {}, "the credential per_user.json must be a JSON object"),
        ('{"local:ana": "tell-no-one"}', {}, "the credential per_user.json must be a JSON object"),
        ('{"": {"TOKEN": "tell-no-one"}}', {}, "the credential per_user.json must be a JSON object"),
    ],
)
async def test_wrong_secrets_are_refused_at_the_start(
    tmp_path: Path, content: str, settings: dict[str, str], sentence: str
) -> None:
    (tmp_path / "per_user.json").write_text(content)
    env = environment(NASTY, BRIDGE_SECRETS_PER_USER=["TOKEN"], **settings)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gatehouse_bridge",
        env=env | {"CREDENTIALS_DIRECTORY": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 78
    assert f"GATEHOUSE_BRIDGE_SECRETS_PER_USER: {sentence}" in errors.decode()
    assert b"tell-no-one" not in output + errors


# covers: own-files
async def test_a_childs_temporary_files_are_its_own_and_go_with_it(start: Start, tmp_path: Path) -> None:
    temporary, elsewhere = tmp_path / "temporary", tmp_path / "elsewhere"
    temporary.mkdir()
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    bridge = start(
        before=drop_capabilities,
        BRIDGE_TEMPORARY=str(temporary),
        BRIDGE_COMMAND=[*NASTY, "--output={temporary}/output"],
        BRIDGE_WARM=0,
    )
    ana, bob = await bridge.open("local:ana"), await bridge.open("local:bob")
    own = Path(json.loads(await ana.call("env"))["TMPDIR"])
    assert own.parent == temporary
    assert own.stat().st_mode & 0o777 == 0o700
    assert f"--output={own}/output" in await ana.call("read", path="/proc/self/cmdline")
    assert own != Path(json.loads(await bob.call("env"))["TMPDIR"])
    assert await ana.call("write", path=str(own / "page"), text="what ana saw") == "written"
    assert await ana.call("read", path=str(own / "page")) == "what ana saw"
    assert await bob.call("read", path=str(own / "page")) == "PermissionError"
    assert await bob.call("write", path=str(own / "page"), text="x") == "PermissionError"
    assert await bob.call("write", path=str(temporary / "x"), text="x") == "PermissionError"
    # Whatever lies there goes, and nothing that it leads to.
    (own / "deep" / "er").mkdir(parents=True)
    (own / "deep" / "link").symlink_to(elsewhere)
    for number in range(250):
        (own / "deep" / "er" / str(number)).touch()
    assert await ana.delete() == 204
    eventually(lambda: not own.exists())
    assert (elsewhere / "kept").read_text() == "kept"
    assert await bob.call("echo", text="unhurt") == "unhurt"
