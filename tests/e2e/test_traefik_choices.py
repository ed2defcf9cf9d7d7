"""Where Traefik's program and the front door's certificate may come from, besides what the lab uses."""

from __future__ import annotations

import datetime
import hashlib
import socket
import ssl
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from clients.driver import McpClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet import Fleet
from gateway import Gateway

RELEASE = "readlink /opt/gatehouse/traefik/current"


@pytest.fixture
def as_before(fleet: Fleet) -> Iterator[None]:
    """Leaves the fleet as the inventory says."""
    yield
    played = fleet.play("site.yml")
    assert played.status == 0, played.output[-3000:]


@pytest.fixture(scope="module")
def program(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traefik's program, as the first edge runs it, on the controller."""
    kept = tmp_path_factory.mktemp("traefik") / "traefik"
    fetched = fleet.ask(
        "gateway_edge[0]",
        "ansible.builtin.fetch",
        f"src=/opt/gatehouse/traefik/current/traefik dest={kept} flat=true",
    )
    assert fetched.status == 0, fetched.output[-3000:]
    kept.chmod(0o755)
    return kept


@pytest.fixture
def archive(program: Path) -> Iterator[tuple[str, str]]:
    """Address and digest of a release archive with that program."""
    folder = program.parent / "site"
    folder.mkdir()
    packed = folder / "traefik.tar.gz"
    with tarfile.open(packed, "w:gz", compresslevel=1) as tar:
        tar.add(program, "traefik")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/traefik.tar.gz"
        yield url, hashlib.sha256(packed.read_bytes()).hexdigest()
        server.shutdown()


def releases(fleet: Fleet) -> list[str]:
    return [host.check_output(RELEASE) for host in fleet.hosts("gateway_edge")]


@pytest.mark.usefixtures("as_before")
def test_own_certificates(fleet: Fleet, gateway: Gateway, tmp_path: Path) -> None:
    root, certificate, key = own_certificate(gateway.domain)
    (tmp_path / "front.pem").write_bytes(certificate)
    (tmp_path / "front.key").write_bytes(key)
    wanted = {
        "gatehouse_tls": "files",
        "gatehouse_tls_certificate": str(tmp_path / "front.pem"),
        "gatehouse_tls_key": str(tmp_path / "front.key"),
    }
    pids = fleet.processes()
    played = fleet.play("site.yml", wanted, "--diff")
    assert played.status == 0, played.output[-3000:]
    assert "PRIVATE KEY" not in played.output
    assert issuer_seen(f"auth.{gateway.domain}", root) == "Own test root"
    assert issuer_seen(f"echo.{gateway.domain}", root) == "Own test root"
    again = fleet.play("site.yml", wanted)
    assert again.status == 0 and again.changes == 0, again.output[-3000:]
    well = fleet.play("status.yml", wanted)
    assert well.status == 0, well.output[-3000:]

    # A renewal, too, is nothing but a new file.
    during = fleet.processes()
    root, certificate, key = own_certificate(gateway.domain, "Next test root")
    (tmp_path / "front.pem").write_bytes(certificate)
    (tmp_path / "front.key").write_bytes(key)
    renewed = fleet.play("site.yml", wanted)
    assert renewed.status == 0, renewed.output[-3000:]
    assert issuer_seen(f"auth.{gateway.domain}", root) == "Next test root"
    assert fleet.processes() == during == pids


@pytest.mark.usefixtures("as_before")
def test_an_archive_is_used_if_its_digest_is_right(
    fleet: Fleet, gateway: Gateway, fresh_client: McpClient, archive: tuple[str, str]
) -> None:
    url, digest = archive
    fresh_client.call(gateway.echo, "echo", text="before")
    before = releases(fleet)
    wanted = {"gatehouse_traefik_source": "archive", "gatehouse_traefik_archive_url": url}

    refused = fleet.play("site.yml", {**wanted, "gatehouse_traefik_archive_sha256": "0" * 64})
    assert refused.status != 0
    assert "traefik_archive_sha256: what was fetched has the digest" in refused.output
    assert releases(fleet) == before

    played = fleet.play("site.yml", {**wanted, "gatehouse_traefik_archive_sha256": digest})
    assert played.status == 0, played.output[-3000:]
    assert all(now != then for now, then in zip(releases(fleet), before, strict=True))
    assert fresh_client.call(gateway.echo, "echo", text="after") == "after"
    assert fresh_client.sign_ins == 1


@pytest.mark.usefixtures("as_before")
def test_a_file_on_the_controller_is_used(fleet: Fleet, gateway: Gateway, program: Path) -> None:
    before = releases(fleet)
    wanted = {"gatehouse_traefik_source": "file", "gatehouse_traefik_file": str(program)}
    played = fleet.play("site.yml", wanted)
    assert played.status == 0, played.output[-3000:]
    assert all(now != then for now, then in zip(releases(fleet), before, strict=True))
    assert not gateway.problem()


def issuer_seen(host: str, root: bytes) -> str:
    """The name of the CA that signed the certificate which a host shows to someone who trusts that root alone."""
    trust = ssl.create_default_context(cadata=root.decode())
    with (
        socket.create_connection((host, 443), 10) as plain,
        trust.wrap_socket(plain, server_hostname=host) as connection,
    ):
        seen = connection.getpeercert()
    assert seen is not None
    return next(value for part in seen["issuer"] for name, value in part if name == "commonName")


def own_certificate(domain: str, name: str = "Own test root") -> tuple[bytes, bytes, bytes]:
    """A root, and a certificate by it for everything below the domain with its key, all in PEM."""
    now = datetime.datetime.now(datetime.UTC)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def build(subject: x509.Name, public: ec.EllipticCurvePublicKey, ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    root = build(issuer, root_key.public_key(), ca=True).sign(root_key, hashes.SHA256())
    names = x509.SubjectAlternativeName([x509.DNSName(domain), x509.DNSName(f"*.{domain}")])
    leaf = (
        build(x509.Name([]), key.public_key(), ca=False)
        .add_extension(names, critical=True)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return root.public_bytes(pem), leaf.public_bytes(pem), secret
