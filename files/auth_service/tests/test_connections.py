"""Where Redis is, as a URL says it, and TLS to it."""

import asyncio
import io
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from conftest import RedisServer, free_port, wait_for
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.exceptions import ConnectionError as RedisConnectionError
from watched import NAME, Sentinel

from gatehouse_auth.audit import Log
from gatehouse_auth.connections import RedisAddress, connect
from gatehouse_auth.verifier import RevocationStream


def test_what_a_url_means() -> None:
    assert RedisAddress.parse("redis://auth@127.0.0.1:6379/0") == RedisAddress(
        False, "auth", (("127.0.0.1", 6379),), "", 0
    )
    assert RedisAddress.parse("rediss://[::1]/2") == RedisAddress(True, None, (("::1", 6379),), "", 2)
    assert RedisAddress.parse("rediss+sentinel://a%40b@r1:5000,r2,[fd00::3]:26380/gate/3") == RedisAddress(
        True, "a@b", (("r1", 5000), ("r2", 26379), ("fd00::3", 26380)), "gate", 3
    )


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("", "begin with"),
        ("http://r1", "begin with"),
        ("redis://r1/0?password=x", "begin with"),
        ("redis://auth:x@r1", "credential redis_password"),
        ("redis://", "hosts"),
        ("redis://r1:x", "ports"),
        ("redis://r1/x", "database"),
        ("redis://r1,r2,r3/0", "redis+sentinel://"),
        ("redis+sentinel://r1,r2,r3", "name the primary"),
        ("redis+sentinel://r1,r2/gatehouse", "three sentinels"),
        ("redis+sentinel://r1,r2,r2/gatehouse", "three sentinels"),
    ],
)
def test_what_is_wrong_with_a_url(url: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"must|belongs") as caught:
        RedisAddress.parse(url)
    assert part in str(caught.value)


def certificate(folder: Path) -> tuple[str, str]:
    """An authority for 127.0.0.1 alone: the lines that make Redis use it, and its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "redis.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "redis.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    lines = (
        f"tls-cert-file {folder}/redis.pem\ntls-key-file {folder}/redis.key\n"
        f"tls-ca-cert-file {folder}/redis.pem\ntls-auth-clients no\ntls-replication yes\n"
    )
    return lines, (folder / "redis.pem").read_text()


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[tuple[RedisServer, int, str, str]]:
    lines, authority = certificate(tmp_path)
    port = free_port()
    server = RedisServer(tmp_path, free_port(), configuration=f"tls-port {port}\n{lines}")
    server.start()
    yield server, port, lines, authority
    server.stop()


async def ping(url: str, password: str, authority: str) -> bool:
    connections = connect(url, password, authority)
    following = asyncio.create_task(connections.run())
    try:
        if connections.primary is not None:
            found = asyncio.Event()
            connections.primary.on_move = found.set
            await found.wait()
        return bool(await connections.commands.ping())
    finally:
        following.cancel()
        await connections.close()


def test_tls(encrypted: tuple[RedisServer, int, str, str], tmp_path: Path) -> None:
    server, port, _, authority = encrypted
    url = f"rediss://auth@127.0.0.1:{port}/0"
    assert asyncio.run(ping(url, server.password, authority))
    with pytest.raises(RedisConnectionError):
        asyncio.run(ping(url, server.password, ""))
    with pytest.raises(RedisConnectionError):
        asyncio.run(ping(f"rediss://auth@127.0.0.2:{port}/0", server.password, authority))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with pytest.raises(RedisConnectionError):
        asyncio.run(ping(url, server.password, certificate(foreign)[1]))


def test_tls_to_sentinels_and_redis(encrypted: tuple[RedisServer, int, str, str], tmp_path: Path) -> None:
    server, port, lines, authority = encrypted
    sentinels = []
    for _ in range(3):
        own = free_port()
        sentinel = Sentinel(tmp_path, own, server.password, port, f"port 0\ntls-port {own}\n{lines}")
        sentinel.start()
        sentinels.append(sentinel)
    try:
        nodes = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        url = f"rediss+sentinel://auth@{nodes}/{NAME}/0"

        def answers() -> bool:
            with suppress(RedisConnectionError, TimeoutError):
                return asyncio.run(asyncio.wait_for(ping(url, server.password, authority), 30))
            return False

        wait_for(answers)
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(ping(url, server.password, ""), 1))
    finally:
        for sentinel in sentinels:
            sentinel.stop()


# covers: failover
def test_sentinels_are_asked_whatever_holds_a_pool_up(monkeypatch: pytest.MonkeyPatch) -> None:
    primary = connect("redis+sentinel://auth@127.0.0.1:1,127.0.0.1:2,127.0.0.1:3/main/0", "secret").primary
    assert primary is not None
    named = ["10.0.0.1", "6379"]

    async def ask(_: object) -> list[str]:
        return named

    async def hang(_: object) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(primary, "_ask", ask)
    monkeypatch.setattr(primary, "_renew", hang)

    async def run() -> None:
        moved = asyncio.Event()
        primary.on_move = moved.set
        following = asyncio.create_task(primary.run())
        for number in range(1, 6):
            named[0] = f"10.0.0.{number}"
            async with asyncio.timeout(60):
                while primary.address != (f"10.0.0.{number}", 6379):
                    await moved.wait()
                    moved.clear()
        following.cancel()

    asyncio.run(run())


class Subscribed:
    """A Redis, as far as one listens to it."""

    def pubsub(self) -> "Subscribed":
        return self

    async def __aenter__(self) -> "Subscribed":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


# covers: failover
def test_a_stream_that_connects_is_not_interrupted() -> None:
    interrupted = []

    class Slow(Subscribed):
        """A Redis that takes its time, and then does not answer."""

        async def subscribe(self, _: str) -> None:
            try:
                await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                interrupted.append(True)
                raise
            raise RedisConnectionError

    async def run() -> None:
        stream = RevocationStream(Slow(), Log(io.StringIO()), lambda _: None)  # type: ignore[arg-type]
        listening = asyncio.create_task(stream.run())
        for _ in range(6):
            await asyncio.sleep(0.1)
            stream.moved()
        assert not interrupted
        listening.cancel()

    asyncio.run(run())


# covers: failover, revocation
def test_a_stream_that_was_begun_before_a_move_does_not_count() -> None:
    class Slow(Subscribed):
        """A Redis that takes its time."""

        begun = 0

        async def subscribe(self, _: str) -> None:
            self.begun += 1
            self.told = False
            await asyncio.sleep(0.1)

        async def get_message(self, **_: float) -> dict[str, str]:
            if self.told:
                await asyncio.sleep(0.05)
                return {"type": "pong"}
            self.told = True
            return {"type": "subscribe"}

    async def run() -> None:
        redis = Slow()
        stream = RevocationStream(redis, Log(io.StringIO()), lambda _: None)  # type: ignore[arg-type]
        listening = asyncio.create_task(stream.run())
        await asyncio.sleep(0.05)
        stream.moved()
        while redis.begun < 2:
            assert not stream.synced
            await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            while not stream.synced:
                assert not listening.done()
                await asyncio.sleep(0.01)
        listening.cancel()

    asyncio.run(run())
