"""A client of ours, as Authlib asks about it (RFC 6749 section 2, RFC 7591 section 2)."""

import hmac
from dataclasses import dataclass, field
from typing import Any

from authlib.oauth2.rfc6749 import ClientMixin

from gatehouse_auth import redirects
from gatehouse_auth.store import digest


@dataclass(frozen=True)
class Client(ClientMixin):
    """A client from inventory or from registration. Of its secrets only digests are known."""

    client_id: str
    metadata: dict[str, Any]
    secret_digest: str = field(default="", repr=False)
    registration_digest: str = field(default="", repr=False)
    issued_at: int = 0

    def as_record(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "metadata": self.metadata,
            "secret": self.secret_digest,
            "registration": self.registration_digest,
            "issued_at": self.issued_at,
        }

    @classmethod
    def from_record(cls, client_id: str, record: dict[str, Any]) -> "Client":
        """The client of `as_record`."""
        return cls(
            client_id, record["metadata"], record["secret"], record["registration"], record["issued_at"]
        )

    @property
    def client_info(self) -> dict[str, Any]:
        """What the server added to the client's own metadata (RFC 7592 section 3)."""
        return {"client_id": self.client_id, "client_id_issued_at": self.issued_at}

    @property
    def client_metadata(self) -> dict[str, Any]:
        """What the client registered."""
        return self.metadata

    @property
    def name(self) -> str:
        """What the client calls itself."""
        return str(self.metadata.get("client_name") or self.client_id)

    def get_client_id(self) -> str:
        """The client identifier."""
        return self.client_id

    def get_default_redirect_uri(self) -> str | None:
        """The redirect URI of a request that names none: OAuth 2.1 wants it named."""
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        """Scopes belong to the resource, which has been asked already."""
        return scope or ""

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Whether the redirect URI is one of the client's."""
        return any(
            redirects.matches(registered, redirect_uri) for registered in self.metadata["redirect_uris"]
        )

    def check_client_secret(self, client_secret: str) -> bool:
        """Whether the secret is the client's, in constant time."""
        return self.secret_digest != "" and hmac.compare_digest(self.secret_digest, digest(client_secret))

    def check_registration_token(self, token: str) -> bool:
        """Whether the registration access token is the client's, in constant time."""
        return self.registration_digest != "" and hmac.compare_digest(self.registration_digest, digest(token))

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """Whether the client authenticates in this way; the same at every endpoint."""
        return bool(method == self.metadata["token_endpoint_auth_method"])

    def check_response_type(self, response_type: str) -> bool:
        """Whether the client may ask for this; `code` is all there is."""
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        """Whether the client registered for this grant."""
        return grant_type in self.metadata["grant_types"]
