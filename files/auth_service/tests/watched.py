"""Three Redis servers that three real sentinels watch, on loopback."""

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conftest import Fleet, RedisServer, fleet_in, free_port, wait_for
from redis import Redis
from redis.exceptions import RedisError

NAME = "gatehouse"
DOWN_MILLISECONDS = 1000


@dataclass
class Sentinel:
    """One sentinel, which knows the users of Redis too."""

    folder: Path
    port: int
    password: str
    primary: int
    configuration: str = ""
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        configuration = self.folder / f"sentinel-{self.port}.conf"
        configuration.write_text(
            f"{self.configuration or f'port {self.port}'}\nbind 127.0.0.1\ndir {self.folder}\n"
            "user default off\n"
            f"user admin on >{self.password} ~* &* +@all\n"
            f"user auth on >{self.password} -@all +sentinel|get-master-addr-by-name\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self.primary} 2\n"
            f"sentinel auth-user {NAME} admin\nsentinel auth-pass {NAME} {self.password}\n"
            f"sentinel sentinel-user admin\nsentinel sentinel-pass {self.password}\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_MILLISECONDS}\n"
            f"sentinel failover-timeout {NAME} 3000\nsentinel parallel-syncs {NAME} 2\n"
        )
        self.process = subprocess.Popen(
            ["/usr/bin/redis-server", str(configuration), "--sentinel"], stdout=subprocess.DEVNULL
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def named(self) -> int:
        """The primary's port, as it has it."""
        with Redis(port=self.port, username="admin", password=self.password) as client:
            return int(client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", NAME)[1])

    def busy(self) -> bool:
        """Whether it is at a failover."""
        with Redis(port=self.port, username="admin", password=self.password) as client:
            return "failover_in_progress" in client.sentinel_master(NAME)["flags"]

    def ready(self) -> bool:
        """Whether it knows the others."""
        try:
            with Redis(port=self.port, username="admin", password=self.password) as client:
                state = client.sentinel_master(NAME)
        except RedisError:
            return False
        return bool(state["num-slaves"] == state["num-other-sentinels"] == 2)


@dataclass
class Watched:
    """The servers and their sentinels. `account` is how the servers follow each other."""

    account: str
    servers: list[RedisServer]
    sentinels: list[Sentinel]

    @property
    def url(self) -> str:
        nodes = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://auth@{nodes}/{NAME}/0"

    def named(self) -> int:
        """The primary's port, as most sentinels have it: one alone may be stuck in a failover for good."""
        ports = Counter(sentinel.named() for sentinel in self.sentinels)
        return ports.most_common(1)[0][0]

    @property
    def primary(self) -> RedisServer:
        port = self.named()
        return next(server for server in self.servers if server.port == port)

    @property
    def replicas(self) -> list[RedisServer]:
        port = self.named()
        return [server for server in self.servers if server.port != port]

    def healthy(self) -> bool:
        """Whether one is the primary, the others follow it, and no sentinel is still at a failover.

        It would wait for the server that it has promoted, for good, if that were killed now.
        """
        try:
            return online(self.primary) and not any(sentinel.busy() for sentinel in self.sentinels)
        except RedisError:
            return False


def online(primary: RedisServer) -> bool:
    """Whether two replicas follow."""
    state = primary.admin.info("replication")
    return [state.get(f"slave{number}", {}).get("state") for number in (0, 1)] == ["online", "online"]


@contextmanager
def watched_in(folder: Path) -> Iterator[tuple[Fleet, Watched]]:
    """A fleet on a Redis with two replicas, and its Redis."""
    with ExitStack() as stack:
        primary = RedisServer(folder, free_port())
        account = f"masteruser admin\nmasterauth {primary.password}\nrepl-diskless-sync-delay 0\n"
        primary.configuration = account
        fleet = stack.enter_context(fleet_in(folder, primary))
        watched = Watched(account, [primary], [])
        for number in (1, 2):
            own = folder / f"replica-{number}"
            own.mkdir()
            follow = f"{account}replicaof 127.0.0.1 {primary.port}\n"
            replica = RedisServer(own, free_port(), primary.password, configuration=follow)
            replica.start()
            stack.callback(replica.stop)
            watched.servers.append(replica)
        # Sentinels look for replicas at once, and then every ten seconds.
        wait_for(lambda: online(primary))
        for _ in range(3):
            sentinel = Sentinel(folder, free_port(), primary.password, primary.port)
            sentinel.start()
            stack.callback(sentinel.stop)
            watched.sentinels.append(sentinel)
        wait_for(lambda: all(sentinel.ready() for sentinel in watched.sentinels))
        fleet.environment["GATEHOUSE_REDIS_URL"] = watched.url
        yield fleet, watched
