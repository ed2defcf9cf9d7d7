"""Dynamic client registration (RFC 7591) and its management (RFC 7592), on Authlib's endpoints."""

import json
import time
import unicodedata
from dataclasses import dataclass, replace
from typing import Any

from authlib.oauth2.rfc6749 import JsonRequest
from authlib.oauth2.rfc7591 import (
    ClientMetadataClaims,
    ClientRegistrationEndpoint,
    InvalidClientMetadataError,
    InvalidRedirectURIError,
)
from authlib.oauth2.rfc7592 import ClientConfigurationEndpoint
from joserfc.errors import JoseError

from gatehouse_auth import redirects
from gatehouse_auth.oauth.assertions import METHOD
from gatehouse_auth.oauth.client import Client
from gatehouse_auth.oauth.keys import public_keys
from gatehouse_auth.oauth.messages import Reply
from gatehouse_auth.oauth.server import AssertionGrant, DeviceGrant, new_secret
from gatehouse_auth.store import digest

GRANTS = ("authorization_code", "refresh_token")
ACCEPTED_GRANTS = (*GRANTS, DeviceGrant.GRANT_TYPE, AssertionGrant.GRANT_TYPE)
REDIRECTS = 20
TEXTS = (
    "client_name",
    "client_uri",
    "logo_uri",
    "tos_uri",
    "policy_uri",
    "jwks_uri",
    "software_id",
    "software_version",
    "scope",
    "token_endpoint_auth_method",
)
NAME_LIMIT = 100
TEXT_LIMIT = 2048
KEYS = 10
# What is kept of a client that may never be used (store.UNUSED_CLIENTS), as JSON.
RECORD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A JSON payload, as Authlib asks about it."""

    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Management:
    """A registration access token, as Authlib asks about it."""

    token: str

    def check_client(self, client: Client) -> bool:
        """Whether the token is this client's."""
        return client.check_registration_token(self.token)


def acceptable_metadata(data: Any, custom: frozenset[str], *, fetches: bool) -> dict[str, Any]:
    """What can be kept of a client's metadata.

    Acceptable redirect URIs are kept and the others left out, and so are grants, response types and scopes
    that are not known here: the answer says what was kept (RFC 7591 section 3.2.1).

    Args:
        custom: redirect URIs with schemes of their own, by exact value.
        fetches: whether keys can be read from where the client publishes them.

    Raises:
        InvalidClientMetadataError: a value of the wrong type or size.
        InvalidRedirectURIError: no redirect URI can be kept.
    """
    if not isinstance(data, dict):
        raise InvalidClientMetadataError("The request must be a JSON object.")
    kept = {name: value for name, value in data.items() if value is not None}
    for name in TEXTS:
        if name in kept and not (isinstance(kept[name], str) and len(kept[name]) <= TEXT_LIMIT):
            raise InvalidClientMetadataError(f"{name} must be a text of at most {TEXT_LIMIT} characters.")
    for name in ("redirect_uris", "grant_types", "response_types", "contacts"):
        if name in kept and not (
            isinstance(kept[name], list) and all(isinstance(item, str) for item in kept[name])
        ):
            raise InvalidClientMetadataError(f"{name} must be a list of texts.")
    if "client_name" in kept:
        kept["client_name"] = visible(kept["client_name"])
    if len(kept.get("contacts", [])) > REDIRECTS:
        raise InvalidClientMetadataError("There are too many contacts.")
    if "jwks" in kept:
        kept["jwks"] = acceptable_keys(kept["jwks"])
        if "jwks_uri" in kept:
            raise InvalidClientMetadataError("jwks and jwks_uri exclude each other.")
    if kept.get("token_endpoint_auth_method") == METHOD and not (
        "jwks" in kept or (fetches and "jwks_uri" in kept)
    ):
        raise InvalidClientMetadataError(
            f"{METHOD} needs jwks or jwks_uri." if fetches else f"{METHOD} needs jwks here, not jwks_uri."
        )
    # Left out, RFC 7591 would mean the code grant alone: a client that says nothing still gets to refresh.
    kept["grant_types"] = [grant for grant in kept.get("grant_types", GRANTS) if grant in ACCEPTED_GRANTS]
    by_redirect = "authorization_code" in kept["grant_types"]
    if not by_redirect and DeviceGrant.GRANT_TYPE not in kept["grant_types"]:
        raise InvalidClientMetadataError("grant_types must have authorization_code, or the device grant.")
    uris = [uri for uri in dict.fromkeys(kept.get("redirect_uris", [])) if redirects.acceptable(uri, custom)]
    if (by_redirect and not uris) or len(uris) > REDIRECTS:
        raise InvalidRedirectURIError(
            "Redirect URIs are https, or http on localhost, 127.0.0.1 or [::1]; custom schemes as configured."
        )
    kept["redirect_uris"] = uris
    kept["response_types"] = ["code"] if by_redirect else []
    kept.pop("scope", None)  # scopes are the resources' affair
    return kept


def acceptable_keys(jwks: Any) -> dict[str, Any]:
    """The public keys of a key set, and nothing else of it.

    Raises:
        InvalidClientMetadataError: it is none, or is too large, or tells a secret.
    """
    try:
        keys = public_keys(jwks)
    except ValueError:
        keys = []
    if not 0 < len(keys) <= KEYS or any("d" in jwk for jwk in jwks["keys"] if isinstance(jwk, dict)):
        raise InvalidClientMetadataError(f"jwks must have 1 to {KEYS} public keys that can sign.")
    return {"keys": [key.as_dict(private=False) for key in keys]}


def bounded(metadata: dict[str, Any]) -> dict[str, Any]:
    """What is to be kept of a client, if it is not too much.

    Raises:
        InvalidClientMetadataError: it is.
    """
    if len(json.dumps(metadata)) > RECORD_BYTES:
        raise InvalidClientMetadataError(f"The metadata has more than {RECORD_BYTES} bytes.")
    return metadata


def visible(name: str) -> str:
    """A name without characters that hide, reorder, or break lines (Unicode categories C, Zl, Zp)."""
    plain = "".join(
        " " if unicodedata.category(character) in ("Zl", "Zp") or character.isspace() else character
        for character in name
        if character.isspace() or not unicodedata.category(character).startswith("C")
    )
    return " ".join(plain.split())[:NAME_LIMIT]


class ClientMetadata(ClientMetadataClaims):
    """Metadata whose URLs, which a page may show, are https."""

    def validate(self, now: float | None = None, leeway: int = 0) -> None:
        """As Authlib does, and every URL must be an https one."""
        super().validate(now, leeway)
        for name in ("client_uri", "logo_uri", "tos_uri", "policy_uri", "jwks_uri"):
            if name in self and not (redirects.acceptable(self[name], frozenset())):
                raise InvalidClientMetadataError(f"{name} must be an https URL.")


class Registration(ClientRegistrationEndpoint):
    """Registers one client (RFC 7591)."""

    def __init__(self, metadata: dict[str, Any], issuer: str) -> None:
        super().__init__(None, [ClientMetadata])
        self._metadata = metadata
        self._issuer = issuer
        self._token = new_secret()
        self.client: Client | None = None

    def get_server_metadata(self) -> dict[str, Any]:
        """What the server supports."""
        return self._metadata

    def authenticate_token(self, request: JsonRequest) -> bool:
        """Registration is open to anyone; limits and expiry keep it in bounds."""
        return True

    def generate_client_info(self, request: JsonRequest) -> dict[str, Any]:
        """An identifier, and a secret where the client wants one."""
        info: dict[str, Any] = {"client_id": f"ghc_{new_secret(16)}", "client_id_issued_at": int(time.time())}
        method = request.payload.data.get("token_endpoint_auth_method", "client_secret_basic")
        if method not in ("none", METHOD):
            info.update(client_secret=new_secret(), client_secret_expires_at=0)
        return info

    def save_client(self, info: dict[str, Any], metadata: dict[str, Any], request: JsonRequest) -> Client:
        """Hand the client over; the commit saves it."""
        secret = info.get("client_secret")
        self.client = Client(
            info["client_id"],
            bounded(metadata),
            secret_digest=digest(secret) if secret else "",
            registration_digest=digest(self._token),
            issued_at=info["client_id_issued_at"],
        )
        return self.client

    def generate_client_registration_info(self, client: Client, request: JsonRequest) -> dict[str, str]:
        """Where the client manages its registration, and with what (RFC 7592 section 3)."""
        return {
            "registration_client_uri": f"{self._issuer}/register/{client.client_id}",
            "registration_access_token": self._token,
        }


class Configuration(ClientConfigurationEndpoint):
    """Reads, updates, or deletes one registration (RFC 7592)."""

    def __init__(self, metadata: dict[str, Any], issuer: str, client: Client | None, token: str) -> None:
        super().__init__(None, [ClientMetadata])
        self._metadata = metadata
        self._issuer = issuer
        self._client = client
        self._token = token
        self.updated: Client | None = None
        self.deleted: Client | None = None

    def get_server_metadata(self) -> dict[str, Any]:
        """What the server supports."""
        return self._metadata

    def authenticate_token(self, request: JsonRequest) -> Management | None:
        """The registration access token."""
        return Management(self._token) if self._token else None

    def authenticate_client(self, request: JsonRequest) -> Client | None:
        """The client that the URL names."""
        return self._client

    def revoke_access_token(self, request: JsonRequest, token: Management) -> None:
        """The token of a client that is gone went with it."""

    def check_permission(self, client: Client, request: JsonRequest) -> bool:
        """A client from inventory is managed there."""
        return client.registration_digest != ""

    def create_update_client_response(self, client: Client, request: JsonRequest) -> Any:
        """As Authlib does; the way that a client authenticates cannot change, since its secret stays."""
        data = request.payload.data
        method = client.metadata["token_endpoint_auth_method"]
        if data.setdefault("token_endpoint_auth_method", method) != method:
            raise InvalidClientMetadataError("token_endpoint_auth_method cannot be changed.")
        return super().create_update_client_response(client, request)

    def extract_client_metadata(self, request: JsonRequest) -> dict[str, Any]:
        """As Authlib does, which also prints what is wrong."""
        claims = ClientMetadata(
            dict(request.payload.data), {}, ClientMetadata.get_claims_options(self._metadata), self._metadata
        )
        try:
            claims.validate()
        except JoseError as error:
            raise InvalidClientMetadataError(error.description) from error
        return dict(claims.get_registered_claims())

    def update_client(self, client: Client, metadata: dict[str, Any], request: JsonRequest) -> Client:
        """Hand the client over; the commit saves it. What the update leaves out is gone (section 2.2)."""
        self.updated = replace(client, metadata=bounded(metadata))
        return self.updated

    def delete_client(self, client: Client, request: JsonRequest) -> None:
        """Hand the client over; the commit forgets it."""
        self.deleted = client

    def generate_client_registration_info(self, client: Client, request: JsonRequest) -> dict[str, str]:
        """The same token again: only its digest is known here, and the client has just shown it."""
        return {
            "registration_client_uri": f"{self._issuer}/register/{client.client_id}",
            "registration_access_token": self._token,
        }


def json_request(method: str, issuer: str, data: dict[str, Any]) -> JsonRequest:
    """A registration request, as Authlib takes it."""
    request = JsonRequest(method, f"{issuer}/register")
    request.payload = JsonBody(data)
    return request


def answer(endpoint: Registration | Configuration, request: JsonRequest) -> Reply:
    """The endpoint's reply.

    Raises:
        OAuth2Error: what is wrong with the request.
    """
    status, body, headers = endpoint(request)
    return Reply(status, body, list(headers))
