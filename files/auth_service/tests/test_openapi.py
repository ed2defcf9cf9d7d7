"""The OpenAPI document says what the service does: requests made from it have the answers that it names."""

import os
import re
from base64 import b64encode
from typing import Any

import httpx
import schemathesis
from conftest import REDIRECT, Browser, Node
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gatehouse_auth.app import ROUTES

CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
MACHINE = "Basic " + b64encode(b"machine:machine-secret").decode()


def document() -> dict[str, Any]:
    app = FastAPI(title="Gatehouse authorization server")
    for module in ROUTES:
        app.include_router(module.router)
    return app.openapi()


schema = schemathesis.openapi.from_dict(document(), config=SchemathesisConfig.from_dict({}))


# covers: openapi
@schema.parametrize()
@settings(max_examples=int(os.environ.get("OPENAPI_EXAMPLES", "15")), suppress_health_check=list(HealthCheck))
def test_what_is_made_from_the_document_has_the_answers_that_it_names(
    case: schemathesis.Case, node: Node
) -> None:
    # Half of the calls to the endpoints for clients come from one that can prove who it is.
    known = case.method == "POST" and len(repr(case.body)) % 2
    headers = {"Authorization": MACHINE} if known else {}
    response = case.call(base_url=node.base, headers=headers, allow_redirects=False, timeout=20)
    case.validate_response(response, checks=CHECKS)


# covers: openapi
def test_a_sign_in_has_the_answers_that_the_document_names(node: Node) -> None:
    paths = sorted(schema, key=lambda path: path.count("{"))
    seen: set[str] = set()

    def compare(response: httpx.Response) -> None:
        response.read()
        for path in paths:
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
            if found := re.fullmatch(pattern, response.request.url.path):
                break
        assert found is not None
        case = schema[path][response.request.method].Case(path_parameters=found.groupdict())
        case.validate_response(response, checks=CHECKS)
        seen.add(f"{response.request.method} {path} {response.status_code}")

    with Browser(node, "198.51.100.251") as browser:
        browser.event_hooks = {"response": [compare]}
        registered = browser.register()
        own = {"Authorization": f"Bearer {registered['registration_access_token']}"}
        client = registered["client_id"]
        at = f"/register/{client}"
        browser.get(at, headers=own)
        browser.put(at, headers=own, json={"client_id": client, "redirect_uris": [REDIRECT]})
        for app in (client, "machine"):
            browser.authorize(app, code_challenge_method="plain")
        tokens = browser.tokens(client)
        for path in ("/introspect", "/revoke"):
            browser.post(path, data={"token": tokens.access}, auth=("machine", "machine-secret"))
        browser.refresh(client, tokens.refresh)
        browser.refresh(client, "dead")
        browser.sign_in(browser.consent(browser.authorize(client)), password="wrong")
        browser.consent(browser.authorize(client), "no")
        for path in ("/jwks.json", "/health", "/static/style.css", "/account", "/operators", "/activate"):
            browser.get(path)
        browser.get("/.well-known/oauth-authorization-server/mcp")
        browser.delete(at, headers=own)
        browser.get(at, headers=own)
    assert seen >= {
        "POST /register 201", "GET /register/{client_id} 200", "PUT /register/{client_id} 200",
        "DELETE /register/{client_id} 204", "GET /register/{client_id} 401", "GET /authorize 303",
        "GET /authorize 302", "GET /authorize 400", "GET /consent 200",
        "POST /consent 303", "POST /consent 302",
        "GET /signin/{provider} 200", "POST /signin/{provider} 303", "POST /signin/{provider} 401",
        "POST /token 200", "POST /token 400", "POST /introspect 200",
    }  # fmt: skip
