"""Every entry of the catalogue at once: each really works, keeps what it is given, and reaches no more than it should."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browserless import Person
from clients.driver import ClientError, McpClient
from conftest import ROOT, ClientFactory
from fleet import Fleet, Played, python
from gateway import VERSION, Gateway
from test_no_secrets import PLACES, secrets_of_fleet
from testinfra.host import Host

FOLDER = ROOT / "files" / "mcp_services" / "catalogue"
ENTRIES: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))
}
PORT = 8099
# Pages come from the host itself, from its addresses and a private one, and from beside it: from an address of the lab's network,
# which is on nobody's list, but not over loopback.
LAB = "198.18.0.0/15"
PRIVATE = "10.99.0.1"
BESIDE = "198.19.255.2"
PAGE = "<html><body><h1>Opening hours</h1><p>From nine to five.</p></body></html>"
SERVE = f"""
mkdir -p /run/catalogue-test
printf '%s' '{PAGE}' > /run/catalogue-test/hours.html
systemd-run --quiet --unit catalogue-test python3 -m http.server {PORT} --directory /run/catalogue-test
ip address add {PRIVATE}/32 dev lo
ip netns add catalogue-test
ip link add catalogue-test type veth peer name eth0 netns catalogue-test
ip address add 198.19.255.1/30 dev catalogue-test
ip link set catalogue-test up
ip -n catalogue-test address add {BESIDE}/30 dev eth0
ip -n catalogue-test link set eth0 up
systemd-run --quiet --unit catalogue-test-beside ip netns exec catalogue-test \
  python3 -m http.server {PORT} --directory /run/catalogue-test
"""
CLEAR = f"""
systemctl stop catalogue-test catalogue-test-beside
ip netns delete catalogue-test
ip address del {PRIVATE}/32 dev lo
rm -r /run/catalogue-test
"""
# A box that the command makes of namespaces of its own needs them from the unit.
EXPOSURE_LIMITS = {"tmux": 2.2}
EXPOSURE_LIMIT = 2.0
AS_BEN = """
import json, os, re, urllib.request
slot = os.path.basename(os.readlink("/opt/gatehouse/tmux/current"))
unit = open(f"/etc/systemd/system/gatehouse-tmux@{slot}.service").read()
port = re.search(r"LISTEN=127.0.0.1:([0-9]+)", unit)[1]
headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
           "MCP-Protocol-Version": "2025-06-18", "X-Gatehouse-User": "ben"}
def post(**message):
    body = json.dumps({"jsonrpc": "2.0", **message}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/mcp", body, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        headers.setdefault("Mcp-Session-Id", response.headers.get("mcp-session-id") or "")
        return response.read().decode()
hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
post(id=1, method="initialize", params=hello)
post(method="notifications/initialized")
said = post(id=2, method="tools/call", params={"name": "list_sessions", "arguments": {}})
print(json.dumps(json.loads(said[said.index("{"):])["result"]["structuredContent"]["result"]))
"""
COMMIT = """
cd /var/lib/gatehouse-git
runuser -u gatehouse-git -- git init --quiet example
runuser -u gatehouse-git -- git -C example -c user.name=Ana -c user.email=ana@example.com \
  commit --quiet --allow-empty --message 'The first change'
"""
# Everything of ours save the environments, which only take time; and other users take the places of ours, so that the next
# ones have other ids.
LOSE = """
systemctl stop 'gatehouse-*.service' 'gatehouse-*.socket'
rm -rf /var/lib/gatehouse* /var/cache/gatehouse* /etc/gatehouse /etc/sysusers.d/gatehouse* /etc/systemd/system/gatehouse*
find /opt/gatehouse -mindepth 1 -maxdepth 1 ! -name environments -exec rm -r {} +
systemctl daemon-reload
for user in $(getent passwd | grep -o '^gatehouse-[a-z-]*'); do userdel $user; useradd --system other-${user#gatehouse-}; done
"""
TIDY = "for user in $(getent passwd | grep -o '^other-[a-z-]*'); do userdel $user; done"


@pytest.fixture(scope="module")
def host(fleet: Fleet) -> Host:
    [only] = fleet.hosts("gateway_mcp")
    return only


@pytest.fixture(scope="module")
def services(person: Person) -> dict[str, dict[str, Any]]:
    """Every entry as the catalogue has it, and three that are let do more, for what then still holds them."""
    entries = {
        name: {"allow": {"users": [person.user]}} if "shared_state" in entry else {}
        for name, entry in ENTRIES.items()
    }
    explorer = {**entries["filesystem"], "catalogue": "filesystem", "args": ["/"]}
    reader = {"catalogue": "fetch", "args": ["--allow-private-ips"]}
    native = {"catalogue": "fetch-native", "env": {"FETCH_ALLOW": LAB, "FETCH_PORTS": str(PORT)}}
    return {**entries, "explorer": explorer, "reader": reader, "reader-native": native}


def play(fleet: Fleet, services: dict[str, dict[str, Any]]) -> Played:
    played = fleet.play("site.yml", {"gatehouse_mcp_services_group": services})
    assert played.status == 0, played.output[-3000:]
    return played


@pytest.fixture(scope="module")
def rolled_out(fleet: Fleet, services: dict[str, dict[str, Any]]) -> Iterator[None]:
    """The fleet with all of them; afterwards it is as the inventory says."""
    try:
        play(fleet, services)
        yield
    finally:
        back = fleet.play("site.yml")
        assert back.status == 0, back.output[-3000:]


@pytest.fixture(scope="module")
def client(rolled_out: None, clients: ClientFactory) -> Iterator[McpClient]:
    with clients.start("python-2") as started:
        yield started


@pytest.fixture(scope="module")
def page(rolled_out: None, host: Host) -> Iterator[str]:
    """The address of a page that the host serves."""
    host.check_output(SERVE)
    yield f"http://{host.check_output('hostname -I').split()[0]}:{PORT}/hours.html"
    host.check_output(CLEAR)


# covers: catalogue-probe
@pytest.mark.parametrize("name", sorted(set(ENTRIES) - {"fetch", "fetch-native"}))
def test_its_probe_works(name: str, client: McpClient, gateway: Gateway, host: Host) -> None:
    if name == "git":
        host.check_output(COMMIT)
    state = f"/var/lib/gatehouse-{name}"
    probe = json.loads(json.dumps(ENTRIES[name]["probe"]).replace("{state}", state))
    said = client.call(gateway.service(name), probe["tool"], **probe["arguments"])
    expected = {
        "echo": "hello",
        "echo-stateful": "waited_seconds",
        "everything": "hello",
        "filesystem": state,
        "git": "The first change",
        "memory": "entities",
        "playwright": "Opening hours",
        "sequential-thinking": "thoughtNumber",
        "time": "UTC",
        "tmux": "probe",
    }
    assert expected[name] in said


# covers: sessions
def test_a_session_is_kept_through_the_gateway(client: McpClient, gateway: Gateway) -> None:
    url = gateway.service("echo-stateful")
    client.call(url, "echo", text="signed in")
    token = client.credentials(url)["access_token"]
    hello = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    opened = gateway.post(url, "initialize", hello, token=token)
    session = [("Mcp-Session-Id", opened.headers["mcp-session-id"])]
    counted = [gateway.call(url, "count", token=token, headers=session) for _ in range(2)]
    assert [json.loads(text)["count"] for text in counted] == [1, 2]
    unknown = gateway.post(url, "tools/list", token=token, headers=[("Mcp-Session-Id", "0" * 32)])
    assert unknown.status_code == 404


@pytest.mark.parametrize("reader", ["reader", "reader-native"])
def test_a_page_is_fetched(client: McpClient, gateway: Gateway, page: str, reader: str) -> None:
    said = client.call(gateway.service(reader), "fetch", url=f"http://{BESIDE}:{PORT}/hours.html")
    assert "From nine to five." in said
    assert "<p>" not in said, "it is Markdown"


# covers: loopback
def test_private_addresses_are_not_fetched(
    client: McpClient, gateway: Gateway, host: Host, page: str
) -> None:
    with pytest.raises(ClientError, match="not a public address"):
        client.call(gateway.service("fetch"), "fetch", url=page)
    # This one would, as one that has been told two addresses for a name; its sandbox does not let it.
    for address in (page.split("/")[2].partition(":")[0], PRIVATE, "127.0.0.1", "localhost"):
        inside = f"http://{address}:{PORT}/hours.html"
        assert "nine to five" in host.check_output(
            f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{inside}\").read())'"
        )
        with pytest.raises(ClientError, match="connection issue"):
            client.call(gateway.service("reader"), "fetch", url=inside)


def test_the_native_service_lets_nothing_inside_be_fetched(
    client: McpClient, gateway: Gateway, host: Host, page: str
) -> None:
    with pytest.raises(ClientError, match="is not fetched from; allowed are 80, 443"):
        client.call(gateway.service("fetch-native"), "fetch", url=page)
    # The page is on these addresses too, and systemd's filter always lets loopback through.
    for address in (PRIVATE, "127.0.0.1", "127.0.0.2", "localhost"):
        inside = f"http://{address}:{PORT}/hours.html"
        assert "nine to five" in host.check_output(
            f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{inside}\").read())'"
        )
        with pytest.raises(ClientError, match="its address is not public"):
            client.call(gateway.service("reader-native"), "fetch", url=inside)


# covers: loopback
def test_a_page_reaches_nothing_on_the_host(
    client: McpClient, gateway: Gateway, host: Host, page: str
) -> None:
    browser = gateway.service("playwright")
    for address in (page.split("/")[2].partition(":")[0], PRIVATE, "127.0.0.1", "localhost"):
        inside = f"http://{address}:{PORT}/hours.html"
        assert "nine to five" in host.check_output(
            f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{inside}\").read())'"
        )
        with pytest.raises(ClientError, match="net::ERR_"):
            client.call(browser, "browser_navigate", url=inside)
    for tool, arguments in (
        ("browser_run_code_unsafe", {"code": "1"}),
        ("browser_file_upload", {"paths": []}),
    ):
        with pytest.raises(ClientError, match="Unknown tool"):
            client.call(browser, tool, **arguments)
    # Chromium leaves its own sandbox out only when told to, and says so in what it is.
    running = host.check_output("ps -eo args | grep '[c]hromium.*--type=renderer' | head -1")
    assert running and "--no-sandbox" not in running


# covers: own-files
def test_a_browser_shows_nothing_of_what_another_session_saw(
    client: McpClient, gateway: Gateway, host: Host
) -> None:
    """The server refuses `file:` addresses, and lets this form of one through."""
    url = gateway.service("playwright")
    client.call(url, "browser_navigate", url="data:text/html,signed in")
    token = client.credentials(url)["access_token"]
    hello = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    sessions = []
    for _ in range(2):
        opened = gateway.post(url, "initialize", hello, token=token)
        sessions.append([("Mcp-Session-Id", opened.headers["mcp-session-id"])])
    mine, others = sessions

    def show(session: list[tuple[str, str]], address: str) -> str:
        arguments = {"name": "browser_navigate", "arguments": {"url": address}}
        gateway.post(url, "tools/call", arguments, token=token, headers=session)
        return gateway.call(url, "browser_snapshot", token=token, headers=session)

    assert "nine to five" in show(mine, f"data:text/html,{PAGE}")
    found = "find /var/tmp/systemd-private-*-gatehouse-playwright@*/tmp -path '*/output/*' -type f | xargs grep -l 'nine to five'"
    saved = re.sub(r".*/tmp/child-", "/var/tmp/child-", host.check_output(found).splitlines()[0])
    shown = f"view-source:file://{saved}"
    assert "nine to five" in show(mine, shown)
    assert "nine to five" not in show(others, shown)


# covers: loopback
def test_a_terminal_is_in_a_box_of_its_own(client: McpClient, gateway: Gateway, host: Host) -> None:
    terminal = gateway.service("tmux")
    client.call(terminal, "create_session", session_name="ana")
    look = (
        "ls -A /proc /var /run /etc 2>/dev/null; ls /opt/gatehouse; getent hosts example.com; echo $((6*7))"
    )
    said = client.call(terminal, "run_command", session_name="ana", command=look)
    assert "42" in said and "environments" in said
    for hidden in ("tmux.service", "gatehouse-tmux", "passwd", "credentials", "releases", "resolv"):
        assert hidden not in said
    connect = "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 6379))'"
    assert "refused" in client.call(terminal, "run_command", session_name="ana", command=connect)
    # As another user, past the gateway, which is how the service sees one.
    assert python(host, AS_BEN).splitlines()[-1] == "[]"


# covers: catalogue-sandbox
def test_every_unit_is_sandboxed(host: Host, rolled_out: None) -> None:
    units = host.check_output(
        "systemctl list-units 'gatehouse-*@*.service' --no-legend --plain | cut -d' ' -f1"
    )
    table = host.check_output(f"systemd-analyze security --no-pager {' '.join(units.split())}")
    found = dict(re.findall(r"^gatehouse-(\S+)@\w\.service\s+([\d.]+) ", table, re.MULTILINE))
    assert set(ENTRIES) <= set(found)
    limits = {unit: EXPOSURE_LIMITS.get(unit, EXPOSURE_LIMIT) for unit in found}
    assert {unit: value for unit, value in found.items() if float(value) > limits[unit]} == {}


def test_files_outside_cannot_be_touched(client: McpClient, gateway: Gateway, host: Host) -> None:
    kept = "/var/lib/gatehouse-filesystem/kept.txt"
    client.call(gateway.service("filesystem"), "write_file", path=kept, content="kept")
    for path in ("/etc/shadow", "/etc/hostname", "/var/lib/gatehouse-memory/memory.json"):
        with pytest.raises(ClientError, match="Access denied"):
            client.call(gateway.service("filesystem"), "read_text_file", path=path)

    # The server would give this one any file; its user and its sandbox do not.
    explorer = gateway.service("explorer")
    assert client.call(explorer, "read_text_file", path="/etc/hostname").strip() == host.check_output(
        "cat /etc/hostname"
    )
    for path in ("/etc/shadow", kept, "/etc/gatehouse/auth/.env", "/etc/gatehouse/explorer/credentials"):
        assert host.file(path).exists
        with pytest.raises(ClientError, match="EACCES"):
            client.call(explorer, "read_text_file", path=path)
    with pytest.raises(ClientError, match=r"EROFS|EACCES"):
        client.call(explorer, "write_file", path="/etc/catalogue-test", content="x")
    assert not host.file("/etc/catalogue-test").exists


# covers: state-upgrade
def test_data_survives_an_upgrade(
    client: McpClient,
    clients: ClientFactory,
    gateway: Gateway,
    fleet: Fleet,
    services: dict[str, dict[str, Any]],
) -> None:
    memory, files = gateway.service("memory"), gateway.service("filesystem")
    path = "/var/lib/gatehouse-filesystem/note.txt"
    ana = {"name": "Ana", "entityType": "person", "observations": ["likes tea"]}
    client.call(memory, "create_entities", entities=[ana])
    client.call(files, "write_file", path=path, content="written before")
    before = fleet.processes()

    upgraded = {name: services[name] | {"env": {"RELEASE": "next"}} for name in ("memory", "filesystem")}
    play(fleet, services | upgraded)
    after = fleet.processes()
    assert changed(before, after) == {"gatehouse-filesystem", "gatehouse-memory"}
    with clients.start("python-2") as another:
        assert "likes tea" in another.call(memory, "read_graph")
        assert another.call(files, "read_text_file", path=path) == "written before"

    again = play(fleet, services | upgraded)
    assert again.changes == 0, "the same inventory again changes nothing"
    assert fleet.processes() == after


def changed(before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]) -> set[str]:
    """The components whose processes are others than before."""
    return {unit.partition("@")[0] for (_, unit), _ in before.items() ^ after.items()}


def test_node_is_there_once_and_npm_is_not(host: Host, rolled_out: None) -> None:
    found = host.check_output(
        "find /opt/gatehouse /usr/bin /usr/local -name node -type f -o -name npm -o -name npx"
    )
    assert [Path(line).parts[-2:] for line in found.splitlines()] == [("bin", "node")]


# covers: state-backup
def test_a_lost_fleet_comes_back_from_a_backup(
    clients: ClientFactory,
    gateway: Gateway,
    fleet: Fleet,
    host: Host,
    services: dict[str, dict[str, Any]],
    rolled_out: None,
    tmp_path: Path,
) -> None:
    """Who was signed in is so still, with the tokens from before; what services kept is there, and theirs."""
    memory, files = gateway.service("memory"), gateway.service("filesystem")
    note = "/var/lib/gatehouse-filesystem/kept/note.txt"
    variables: dict[str, Any] = {"gatehouse_mcp_services_group": services}
    key, folder = tmp_path / "backup.key", tmp_path / "backups"
    made = subprocess.run(["age-keygen", "-o", str(key)], check=True, capture_output=True, text=True)
    with clients.start("python-2") as client:
        ben = {"name": "Ben", "entityType": "person", "observations": ["likes coffee"]}
        client.call(memory, "create_entities", entities=[ben])
        client.call(files, "create_directory", path=str(Path(note).parent))
        client.call(files, "write_file", path=note, content="coffee")
        client.call(gateway.echo, "echo", text="before")
        token, sign_ins = client.credentials(gateway.echo)["access_token"], client.sign_ins

        before = fleet.processes()
        variables["gatehouse_backup_recipients"] = re.findall(r"age1\w+", made.stderr)
        variables["gatehouse_backup_folder"] = str(folder)
        backed_up = fleet.play("backup.yml", variables, "-vvv", "--diff")
        assert backed_up.status == 0, backed_up.output[-3000:]
        assert fleet.processes() == before, "nothing stops for it"
        assert host.run("ls -d /var/lib/gatehouse-redis/*.rdb /var/lib/gatehouse-redis/.backup*").stdout == ""
        [archive] = folder.iterdir()
        assert archive.stat().st_mode & 0o777 == 0o600
        secrets = secrets_of_fleet(fleet)
        content = archive.read_bytes()
        assert [secret.name for secret in secrets if secret.value in content] == []
        assert b"coffee" not in content

        client.call(memory, "create_entities", entities=[ben | {"name": "Cem"}])
        variables["gatehouse_restore_archive"] = str(archive)
        variables["gatehouse_restore_identity"] = str(key)
        refused = fleet.play("restore.yml", variables)
        assert refused.status != 0
        assert "/var/lib/gatehouse-memory" in refused.output
        assert "gatehouse_restore_replace=true" in refused.output
        assert refused.changes == 0
        assert fleet.processes() == before
        assert "Cem" in client.call(memory, "read_graph")

        ids = host.check_output(f"stat --format=%u {note}")
        host.check_output(LOSE)
        restored = fleet.play("restore.yml", variables, "-vvv", "--diff")
        host.check_output(TIDY)
        assert restored.status == 0, restored.output[-3000:]
        assert gateway.call(gateway.echo, "echo", token=token, text="after") == "after"
        client.expire(gateway.echo)
        assert client.call(gateway.echo, "echo", text="refreshed") == "refreshed"
        for url in (memory, files):
            client.connect(url, "auto")  # sessions end with their processes
        graph = client.call(memory, "read_graph")
        assert "Ben" in graph
        assert "Cem" not in graph, "it is from after the backup"
        assert client.call(files, "read_text_file", path=note) == "coffee"
        assert client.sign_ins == sign_ins
    assert host.check_output(f"stat --format='%a %U' {note}") == "600 gatehouse-filesystem"
    assert host.check_output(f"stat --format=%u {note}") != ids, (
        "files are their service's whatever its id is"
    )
    left = host.check_output("find /var/lib -path '*gatehouse*' '(' -name '*.old' -o -name '*.new' ')'")
    assert left == ""
    output = (backed_up.output + restored.output).encode() + host.run(PLACES["journal"]).stdout_bytes
    assert b"--- before" in output, "it was run with --diff"
    assert [secret.name for secret in secrets if secret.value in output] == []
