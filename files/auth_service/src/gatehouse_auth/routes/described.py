"""What OpenAPI says of each route. Requests are read by hand, as the protocol wants it, so FastAPI cannot
tell by itself. `app.openapi()` makes the document; tests/test_openapi.py holds the service to it.
"""

from typing import Any

from fastapi.responses import Response

from gatehouse_auth.oauth.assertions import METHOD
from gatehouse_auth.oauth.server import AUTH_METHODS, AssertionGrant, DeviceGrant

JSON = "application/json"
HTML = "text/html"
FORM = "application/x-www-form-urlencoded"
Schema = dict[str, Any]

URI: Schema = {"type": "string", "format": "uri", "maxLength": 2048}
# RFC 6749 appendix A.
TEXT: Schema = {"type": "string", "pattern": "^[ -~]+$", "maxLength": 2048}
ANYTHING: Schema = {"type": "string", "maxLength": 2048}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


ERROR = _object({"error": TEXT}, {"error_description": TEXT, "error_uri": URI})


def _answer(description: str, *contents: tuple[str, Schema], headers: tuple[str, ...] = ()) -> Schema:
    return {
        "description": description,
        "content": {kind: {"schema": schema} for kind, schema in contents},
        "headers": {name: {"required": True, "schema": {"type": "string"}} for name in headers},
    }


def _json(description: str, schema: Schema, *headers: str) -> Schema:
    return _answer(description, (JSON, schema), headers=headers)


def _page(description: str) -> Schema:
    return _answer(description, (HTML, {"type": "string"}), headers=("Content-Security-Policy",))


def _sent_on(description: str) -> Schema:
    return _answer(description, headers=("Location",))


REFUSED = _json("Refused (RFC 6749 section 5.2)", ERROR, "Cache-Control")
TOO_LARGE = _answer("The body is too large", (JSON, ERROR), (HTML, {"type": "string"}))
FOR_PROGRAMS = {
    413: TOO_LARGE,
    429: _json("Too many requests", ERROR, "Retry-After"),
    503: _json("Cannot be known right now", ERROR, "Retry-After"),
}
FOR_PEOPLE = {
    400: _page("What is wrong, and what to do"),
    413: TOO_LARGE,
    429: _page("Too many requests"),
    503: _page("Cannot be known right now"),
}
TO_CLIENT = _sent_on("Back to the client, with an error (RFC 6749 section 4.1.2.1)")


def _route(
    answers: dict[int, Schema],
    parameters: dict[str, Schema] | None = None,
    body: tuple[str, Schema] | None = None,
) -> dict[str, Any]:
    """What a route's decorator takes. The first answer is the one that is hoped for.

    Args:
        answers: by status.
        parameters: by where they are and what they are called, `query state`; those of a path are required.
        body: its media type and schema.
    """
    extra: dict[str, Any] = {
        "parameters": [
            {"in": place, "name": name, "required": place == "path", "schema": schema}
            for (place, _, name), schema in (
                (key.partition(" "), schema) for key, schema in (parameters or {}).items()
            )
        ]
    }
    if body is not None:
        kind, schema = body
        extra["requestBody"] = {"required": True, "content": {kind: {"schema": schema}}}
    return {
        "status_code": next(iter(answers)),
        "response_class": Response,
        "responses": answers,
        "openapi_extra": extra,
    }


# Registration (RFC 7591, RFC 7592).

METADATA: dict[str, Schema] = {
    "client_name": ANYTHING,
    "redirect_uris": _list(URI),
    "grant_types": _list(TEXT),
    "response_types": _list(TEXT),
    "token_endpoint_auth_method": {"enum": list(AUTH_METHODS)},
    "jwks": _object({"keys": _list({"type": "object"})}),
    "jwks_uri": URI,
    "client_uri": URI,
    "logo_uri": URI,
    "tos_uri": URI,
    "policy_uri": URI,
    "contacts": _list(ANYTHING),
    "software_id": ANYTHING,
    "software_version": ANYTHING,
}
REGISTERED = _object(
    {
        "client_id": TEXT,
        "client_id_issued_at": {"type": "integer"},
        "registration_client_uri": URI,
        "registration_access_token": TEXT,
        "redirect_uris": _list(URI),
        "grant_types": _list(TEXT),
        "response_types": _list(TEXT),
    },
    {**METADATA, "client_secret": TEXT, "client_secret_expires_at": {"const": 0}},
)
CLIENT = {"path client_id": {"type": "string", "minLength": 1, "maxLength": 200}}
MANAGED = {401: _json("Not this client's token", ERROR, "WWW-Authenticate"), **FOR_PROGRAMS}

REGISTER = _route(
    {201: _json("Registered", REGISTERED, "Cache-Control"), 400: REFUSED, **FOR_PROGRAMS},
    body=(JSON, _object({"redirect_uris": METADATA["redirect_uris"]}, METADATA)),
)
READ = _route({200: _json("The registration", REGISTERED), **MANAGED}, CLIENT)
UPDATE = _route(
    {200: _json("As it is now", REGISTERED), 400: REFUSED, **MANAGED},
    CLIENT,
    (JSON, _object({"client_id": TEXT, "redirect_uris": METADATA["redirect_uris"]}, METADATA)),
)
DELETE = _route({204: _answer("Deleted"), **MANAGED}, CLIENT)


# Tokens (RFC 6749 section 3.2, RFC 7009, RFC 7523, RFC 7662, RFC 8628).

AUTHENTICATION: dict[str, Schema] = {
    "client_id": TEXT,
    "client_secret": TEXT,
    "client_assertion_type": {"const": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
    "client_assertion": {**TEXT, "description": METHOD},
}
RESOURCE = {"resource": URI, "scope": TEXT}


def _grant(name: str, required: dict[str, Schema], optional: dict[str, Schema]) -> Schema:
    return _object({"grant_type": {"const": name}, **required}, {**optional, **AUTHENTICATION})


GRANTS = {
    "oneOf": [
        _grant(
            "authorization_code",
            {
                "code": TEXT,
                "code_verifier": {"type": "string", "pattern": "^[A-Za-z0-9._~-]{43,128}$"},
            },
            {"redirect_uri": URI, "resource": URI},
        ),
        _grant("refresh_token", {"refresh_token": TEXT}, RESOURCE),
        _grant("client_credentials", {}, RESOURCE),
        _grant(DeviceGrant.GRANT_TYPE, {"device_code": TEXT}, {}),
        _grant(AssertionGrant.GRANT_TYPE, {"assertion": TEXT}, RESOURCE),
    ]
}
UNAUTHENTICATED = _json("The client is unknown, or has not proved who it is", ERROR, "Cache-Control")
ASKED = {400: REFUSED, 401: UNAUTHENTICATED, **FOR_PROGRAMS}
SECONDS: Schema = {"type": "integer", "minimum": 1}

TOKEN = _route(
    {
        200: _json(
            "Tokens",
            _object(
                {"access_token": TEXT, "token_type": {"const": "Bearer"}, "expires_in": SECONDS},
                {"refresh_token": TEXT, "scope": TEXT},
            ),
            "Cache-Control",
        ),
        **ASKED,
    },
    body=(FORM, GRANTS),
)
DEVICE = _route(
    {
        200: _json(
            "What the device shows",
            _object(
                {
                    "device_code": TEXT,
                    "user_code": TEXT,
                    "verification_uri": URI,
                    "verification_uri_complete": URI,
                    "expires_in": SECONDS,
                    "interval": SECONDS,
                }
            ),
            "Cache-Control",
        ),
        **ASKED,
    },
    body=(FORM, _object({"client_id": TEXT}, {**RESOURCE, **AUTHENTICATION})),
)
SHOWN = (FORM, _object({"token": TEXT}, {"token_type_hint": TEXT, **AUTHENTICATION}))
REVOKE = _route({200: _json("It is of no use any more", {"type": "object"}), **ASKED}, body=SHOWN)
INTROSPECT = _route(
    {
        200: _json(
            "What it is worth",
            _object(
                {"active": {"type": "boolean"}},
                {
                    **dict.fromkeys(("iss", "client_id", "sub", "username", "aud", "scope", "jti"), TEXT),
                    "exp": {"type": "integer"},
                    "token_type": {"const": "Bearer"},
                },
            ),
            "Cache-Control",
        ),
        **ASKED,
    },
    body=SHOWN,
)


# Discovery (RFC 8414, RFC 7517).

SUFFIX = {"path suffix": {"type": "string", "minLength": 1, "maxLength": 100}}
PREFIX = {"path prefix": {"type": "string", "minLength": 1, "maxLength": 100}}
DISCOVERED = {
    200: _json(
        "What the server can do",
        _object(
            {
                "issuer": URI,
                **{
                    f"{name}_endpoint": URI
                    for name in ("authorization", "token", "registration", "revocation", "introspection")
                },
                "jwks_uri": URI,
                "scopes_supported": _list(TEXT),
                "response_types_supported": {"const": ["code"]},
                "grant_types_supported": _list(TEXT),
                "code_challenge_methods_supported": {"const": ["S256"]},
                "token_endpoint_auth_methods_supported": {"const": AUTH_METHODS},
                "authorization_response_iss_parameter_supported": {"const": True},
            }
        ),
        "Cache-Control",
    )
}
SERVER = _route(DISCOVERED)
# Starlette's paths have no line break in them.
DISCOVERED_BELOW = DISCOVERED | {404: _json("No such path", ERROR)}
SERVER_SUFFIX = _route(DISCOVERED_BELOW, SUFFIX)
SERVER_PREFIX = _route(DISCOVERED_BELOW, PREFIX)
PUBLIC_KEY = {**_object({"kty": TEXT, "kid": TEXT}), "not": {"required": ["d"]}}
JWKS = _route({200: _json("The public keys", _object({"keys": _list(PUBLIC_KEY)}), "Cache-Control")})
STATUS = _object({"status": {"enum": ["ok", "failing"]}})
HEALTH = _route({200: _json("It can serve", STATUS), 503: _json("It cannot", STATUS, "Retry-After")})
STYLE = _route({200: _answer("The style sheet", ("text/css", {"type": "string"}))})


# Pages for people.

FLOW = {"flow": TEXT}
OWN_FORM = {**FLOW, "csrf": TEXT}
PROVIDER = {"path provider": {"type": "string", "minLength": 1, "maxLength": 100}}
ON = _sent_on("On to the next page")
DENIED = {403: _page("Not for this person")}
ENDED = {302: TO_CLIENT, **DENIED}

AUTHORIZE = _route(
    {303: ON, 302: TO_CLIENT, **FOR_PEOPLE},
    {
        "query response_type": {"const": "code"},
        "query client_id": TEXT,
        "query redirect_uri": URI,
        "query scope": TEXT,
        "query state": TEXT,
        "query resource": URI,
        "query code_challenge": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
        "query code_challenge_method": {"const": "S256"},
    },
)
CONSENT = _route({200: _page("The question"), **FOR_PEOPLE}, {"query flow": TEXT})
DECIDE = _route({303: ON, **ENDED, **FOR_PEOPLE}, body=(FORM, _object({**OWN_FORM, "choice": TEXT})))
SIGN_IN = _route(
    {
        200: _page("The form, or the way to the provider"),
        303: ON,
        404: _page("No such provider"),
        **ENDED,
        **FOR_PEOPLE,
    },
    {**PROVIDER, "query flow": TEXT},
)
CHECK_PASSWORD = _route(
    {303: ON, 200: _page("A device is connected"), 401: _page("Not the password"), **ENDED, **FOR_PEOPLE},
    PROVIDER,
    (FORM, _object({**OWN_FORM, "username": ANYTHING, "password": ANYTHING})),
)
CALLBACK = _route(
    {303: ON, 200: _page("A device is connected"), **ENDED, **FOR_PEOPLE},
    {**PROVIDER, **{f"query {name}": TEXT for name in ("state", "code", "error", "iss")}},
)
ACTIVATE = _route({200: _page("The question for the code"), **FOR_PEOPLE}, {"query user_code": ANYTHING})
ENTER = _route(
    {303: ON, 403: _page("A page of another site asks"), **FOR_PEOPLE},
    body=(FORM, _object({"user_code": ANYTHING})),
)
ACCOUNT = _route({200: _page("What is connected, or the way to sign in"), **FOR_PEOPLE})
DISCONNECT = _route({303: ON, **FOR_PEOPLE}, body=(FORM, _object({"csrf": TEXT, "connection": TEXT})))
SIGN_OUT = _route({200: _page("Signed out"), **FOR_PEOPLE}, body=(FORM, _object({"csrf": TEXT})))
OPERATORS = _route({200: _page("What is going on"), 303: ON, **DENIED, **FOR_PEOPLE})
PERSON = _route(
    {200: _page("What a person has connected"), 303: ON, **DENIED, **FOR_PEOPLE}, {"query user": ANYTHING}
)
OPERATORS_DISCONNECT = _route(
    {303: ON, **DENIED, **FOR_PEOPLE},
    body=(FORM, _object({"csrf": TEXT, "user": ANYTHING, "connection": TEXT})),
)
OPERATORS_REMOVE = _route(
    {303: ON, **DENIED, **FOR_PEOPLE}, body=(FORM, _object({"csrf": TEXT, "client": TEXT}))
)
