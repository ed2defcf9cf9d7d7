"""Authorization server metadata (RFC 8414, RFC 9207), checked by Authlib's models."""

from functools import lru_cache
from typing import Any

from authlib.oauth2 import rfc8414, rfc9207

from gatehouse_auth.oauth.keys import ALGORITHMS
from gatehouse_auth.oauth.server import (
    AUTH_METHODS,
    CONFIDENTIAL_METHODS,
    AssertionGrant,
    DeviceGrant,
    scopes_supported,
)
from gatehouse_auth.oauth.tokens import ALGORITHM
from gatehouse_auth.settings import Resource, Settings

ID_JAG_PROFILE = "urn:ietf:params:oauth:grant-profile:id-jag"


def server_metadata(settings: Settings) -> dict[str, Any]:
    """The document at `/.well-known/oauth-authorization-server`."""
    vouched = any(provider.assertions for provider in settings.providers.oidc.values())
    scopes = tuple(scopes_supported(settings))
    return dict(_server_metadata(settings.issuer, scopes, vouched, settings.client_documents))


# Each registration is judged by it.
@lru_cache(1)
def _server_metadata(issuer: str, scopes: tuple[str, ...], vouched: bool, documents: bool) -> dict[str, Any]:
    metadata = rfc8414.AuthorizationServerMetadata(
        issuer=issuer,
        authorization_endpoint=f"{issuer}/authorize",
        token_endpoint=f"{issuer}/token",
        registration_endpoint=f"{issuer}/register",
        revocation_endpoint=f"{issuer}/revoke",
        introspection_endpoint=f"{issuer}/introspect",
        jwks_uri=f"{issuer}/jwks.json",
        scopes_supported=list(scopes),
        response_types_supported=["code"],
        response_modes_supported=["query"],
        device_authorization_endpoint=f"{issuer}/device_authorization",
        grant_types_supported=[
            "authorization_code",
            "refresh_token",
            "client_credentials",
            DeviceGrant.GRANT_TYPE,
            *([AssertionGrant.GRANT_TYPE] if vouched else []),
        ],
        **({"authorization_grant_profiles_supported": [ID_JAG_PROFILE]} if vouched else {}),
        token_endpoint_auth_methods_supported=AUTH_METHODS,
        revocation_endpoint_auth_methods_supported=AUTH_METHODS,
        introspection_endpoint_auth_methods_supported=CONFIDENTIAL_METHODS,
        **{
            f"{endpoint}_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS)
            for endpoint in ("token", "revocation", "introspection")
        },
        code_challenge_methods_supported=["S256"],
        authorization_response_iss_parameter_supported=True,
        client_id_metadata_document_supported=documents,
    )
    metadata.validate(metadata_classes=[rfc9207.AuthorizationServerMetadata])
    return dict(metadata)


def openid_metadata(settings: Settings) -> dict[str, Any]:
    """The same at `/.well-known/openid-configuration`, with the two members without which clients refuse
    a document from there (OpenID Connect Discovery section 3)."""
    return {
        **server_metadata(settings),
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
    }


def resource_metadata(settings: Settings, resource: Resource, name: str) -> dict[str, Any]:
    """A service's protected resource metadata (RFC 9728 section 2)."""
    return {
        "resource": resource.resource,
        "authorization_servers": [settings.issuer],
        "scopes_supported": list(resource.scopes),
        "bearer_methods_supported": ["header"],
        "resource_name": resource.title or name,
    }


def resource_metadata_url(resource: str) -> str:
    """Where that document is (RFC 9728 section 3.1): the well-known part goes between host and path."""
    scheme, _, rest = resource.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host}/.well-known/oauth-protected-resource{slash}{path}"
