"""Web sites on loopback that behave as a test says, and a fetcher for which they are at an address that it may reach."""

import gzip
import ssl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gatehouse_fetch.fetching import Fetcher
from gatehouse_fetch.policy import Policy
from gatehouse_fetch.workers import Workers

NAME = "site.test"
USER = "ana"
PARAGRAPHS = "".join(
    f"<p>Paragraph {number} has <b>enough</b> text, and a <a href='/next'>link</a>.</p>\n"
    for number in range(8)
)
ARTICLE = f"""<!doctype html><html><head><title>An  article</title></head><body><nav><a href="/">Home</a></nav>
<article><h1>An article</h1>{PARAGRAPHS}<script>alert("never shown")</script></article><footer>never shown</footer></body>
</html>"""


class Site:
    """An http site, or with a certificate an https one.

    Attributes:
        pages: What it answers, by path: status, headers, and the body, whole or in parts.
        asked: The paths that were asked for, with their queries.
        headers: Those of the last request.
        closing: Set when the site closes, so that what waits in `pages` can stop.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes | Callable[[], Iterable[bytes]]]] = {}
        self.asked: list[str] = []
        self.headers: dict[str, str] = {}
        self.closing = Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                site.headers = dict(self.headers)
                status, headers, body = site.pages.get(self.path.partition("?")[0], (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for part in [body] if isinstance(body, bytes) else body():
                        self.wfile.write(part)
                except OSError:
                    pass  # the fetcher had enough

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.origin = f"{'https' if certificate else 'http'}://{NAME}:{self.port}"
        Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def html(self, path: str, body: str, **headers: str) -> str:
        """Serve a page; returns its URL."""
        self.pages[path] = (200, {"Content-Type": "text/html; charset=utf-8", **headers}, body.encode())
        return self.origin + path

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        """Redirect; returns the URL that does."""
        self.pages[path] = (status, {"Location": to}, b"")
        return self.origin + path

    def gzipped(self, path: str, body: bytes, **headers: str) -> str:
        """Serve plain text, packed; returns its URL."""
        self.pages[path] = (
            200,
            {"Content-Type": "text/plain", "Content-Encoding": "gzip", **headers},
            gzip.compress(body),
        )
        return self.origin + path

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


def loopback_only(host: str, address: str) -> bool:
    """What a test's fetcher may reach."""
    return address == "127.0.0.1"


async def to_loopback(host: str, port: int) -> list[str]:
    """Where a test's names are: names below `.test` here, and an address where it says."""
    return ["127.0.0.1"] if host.endswith(".test") else [host]


def fetcher(*sites: Site, trust: ssl.SSLContext | None = None) -> Fetcher:
    """A fetcher that may reach these sites, and nothing else."""
    policy = Policy("public", ",".join(str(site.port) for site in sites))
    return Fetcher(policy, Workers(), to_loopback, loopback_only, trust)


def write_certificate(path: Path, name: str) -> None:
    """A certificate and its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
