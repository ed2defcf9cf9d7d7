"""RFC 7591 and RFC 7592."""

from typing import Any

import pytest
from conftest import REDIRECT, Browser, Fleet, Node

CURSOR = [
    "cursor://anysphere.cursor-mcp/oauth/callback",
    "https://www.cursor.com/agents/mcp/oauth/callback",
    "http://localhost:8787/callback",
]


# covers: dcr
def test_an_answer_has_all_that_clients_want(browser: Browser) -> None:
    response = browser.post(
        "/register",
        json={"redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none", "client_name": "X"},
    )
    assert response.status_code == 201
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body["registration_client_uri"].endswith(f"/register/{body['client_id']}")
    assert body["registration_access_token"]
    assert "client_secret" not in body
    assert body["grant_types"] == ["authorization_code", "refresh_token"]


def test_a_confidential_client_gets_a_secret(browser: Browser) -> None:
    body = browser.register(token_endpoint_auth_method="client_secret_post")
    assert body["client_secret"]
    assert body["client_secret_expires_at"] == 0


# covers: dcr
def test_all_of_cursors_redirect_uris_are_kept(browser: Browser) -> None:
    assert browser.register(*CURSOR)["redirect_uris"] == CURSOR


# covers: dcr
def test_acceptable_entries_of_a_mixed_set_are_kept(browser: Browser) -> None:
    bad = ["http://evil.example.test/cb", "javascript:alert(1)", "cursor://other/callback", REDIRECT + "#x"]
    assert browser.register(*bad, REDIRECT)["redirect_uris"] == [REDIRECT]


# covers: dcr
def test_unknown_grants_and_scopes_are_ignored(browser: Browser) -> None:
    body = browser.register(
        grant_types=["authorization_code", "implicit"], scope="openid what", response_types=["x"]
    )
    assert body["grant_types"] == ["authorization_code"]
    assert body["response_types"] == ["code"]
    assert "scope" not in body


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"redirect_uris": ["http://evil.example.test/cb"]}, "invalid_redirect_uri"),
        ({"redirect_uris": []}, "invalid_redirect_uri"),
        ({}, "invalid_redirect_uri"),
        ({"redirect_uris": "x"}, "invalid_client_metadata"),
        ({"redirect_uris": [REDIRECT], "client_name": {"a": 1}}, "invalid_client_metadata"),
        ({"redirect_uris": [REDIRECT], "client_uri": "javascript:alert(1)"}, "invalid_client_metadata"),
        ({"redirect_uris": [REDIRECT], "token_endpoint_auth_method": "what"}, "invalid_client_metadata"),
        ({"redirect_uris": [REDIRECT], "grant_types": ["refresh_token"]}, "invalid_client_metadata"),
        ([], "invalid_client_metadata"),
        ("text", "invalid_client_metadata"),
    ],
)
def test_what_cannot_be_kept_is_refused(browser: Browser, body: Any, error: str) -> None:
    response = browser.post("/register", json=body)
    assert response.status_code == 400
    assert response.json()["error"] == error


def test_what_is_not_json_is_refused(browser: Browser) -> None:
    for content in (b"{", b"\xff", b"[" * 60_000):
        assert browser.post("/register", content=content).json()["error"] == "invalid_request"


# covers: dcr-manage
def test_read_update_delete(browser: Browser) -> None:
    registered = browser.register()
    url = registered["registration_client_uri"]
    bearer = {"Authorization": f"Bearer {registered['registration_access_token']}"}
    read = browser.get(url, headers=bearer)
    assert read.status_code == 200
    assert read.json() == registered
    update = {"client_id": registered["client_id"], "redirect_uris": [CURSOR[1]], "client_name": "Renamed"}
    updated = browser.put(url, headers=bearer, json=update)
    assert updated.status_code == 200, updated.text
    assert updated.json()["redirect_uris"] == [CURSOR[1]]
    assert browser.get(url, headers=bearer).json()["client_name"] == "Renamed"
    assert browser.authorize(registered["client_id"]).status_code == 400
    assert browser.delete(url, headers=bearer).status_code == 204
    assert browser.get(url, headers=bearer).status_code == 401


# covers: dcr-manage
@pytest.mark.parametrize(
    "change",
    [
        {"jwks": None},
        {"client_uri": None},
        {"client_secret": None},
        {"scope": "openid profile"},
        {"response_types": ["what", "code"]},
        {"unknown": {"a": 1}},
    ],
    ids=str,
)
def test_an_update_keeps_what_a_registration_would(browser: Browser, change: dict[str, Any]) -> None:
    """A null counts as left out (RFC 7592 section 2.2)."""
    registered = browser.register(client_uri="https://client.example.test/about")
    bearer = {"Authorization": f"Bearer {registered['registration_access_token']}"}
    body = {"client_id": registered["client_id"], "redirect_uris": [REDIRECT], **change}
    updated = browser.put(registered["registration_client_uri"], headers=bearer, json=body)
    assert updated.status_code == 200, updated.text
    assert not change.keys() - {"response_types"} & updated.json().keys()
    assert "client_uri" not in updated.json()


# covers: dcr-manage
def test_a_refused_update_writes_nothing_but_its_record(browser: Browser, node: Node) -> None:
    registered = browser.register()
    bearer = {"Authorization": f"Bearer {registered['registration_access_token']}"}
    body = {
        "client_id": registered["client_id"],
        "redirect_uris": [REDIRECT],
        "logo_uri": "http://client.example.test/logo",
    }
    refused = browser.put(registered["registration_client_uri"], headers=bearer, json=body)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client_metadata")
    [record] = [
        record
        for record in node.records("registration_management")  # each line of the log is JSON
        if record["client"] == registered["client_id"]
    ]
    assert record["outcome"] == "deny"


# covers: dcr-flood
def test_what_is_kept_of_a_client_is_bounded(browser: Browser) -> None:
    long = [f"{REDIRECT}/{number}/{'x' * 250}" for number in range(20)]
    refused = browser.post("/register", json={"redirect_uris": long, "token_endpoint_auth_method": "none"})
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client_metadata")
    registered = browser.register(*long[:10], unknown="x" * 5000)
    assert registered["redirect_uris"] == long[:10]
    bearer = {"Authorization": f"Bearer {registered['registration_access_token']}"}
    body = {"client_id": registered["client_id"], "redirect_uris": long}
    refused = browser.put(registered["registration_client_uri"], headers=bearer, json=body)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_client_metadata")


# covers: dcr-manage
@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "other"},
        {"client_secret": "guess"},
        {"registration_access_token": "x"},
        {"client_id": None},
    ],
)
def test_updates_that_rfc_7592_forbids(browser: Browser, change: dict[str, Any]) -> None:
    registered = browser.register()
    bearer = {"Authorization": f"Bearer {registered['registration_access_token']}"}
    body = {"client_id": registered["client_id"], "redirect_uris": [REDIRECT], **change}
    response = browser.put(registered["registration_client_uri"], headers=bearer, json=body)
    assert response.status_code == 400


# covers: dcr-manage
def test_a_registration_opens_to_its_own_token_only(browser: Browser) -> None:
    mine, other = browser.register(), browser.register()
    url = mine["registration_client_uri"]
    for token in (other["registration_access_token"], "guess"):
        response = browser.get(url, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 401
        assert "Bearer" in response.headers["www-authenticate"]
    assert browser.get(url).status_code == 401
    assert browser.delete("/register/machine", headers={"Authorization": "Bearer x"}).status_code == 401


def test_deleting_a_client_ends_its_tokens(browser: Browser, node: Node) -> None:
    registered = browser.register()
    tokens = browser.tokens(registered["client_id"])
    assert node.check(tokens.access).status_code == 200
    bearer = {"Authorization": f"Bearer {registered['registration_access_token']}"}
    browser.delete(registered["registration_client_uri"], headers=bearer)
    assert node.check(tokens.access).status_code == 401
    assert browser.refresh(registered["client_id"], tokens.refresh).json()["error"] == "invalid_client"


# covers: dcr-flood
def test_registrations_expire_unless_used(browser: Browser, fleet: Fleet) -> None:
    unused = browser.register()["client_id"]
    used = browser.register()["client_id"]
    browser.tokens(used)
    redis = fleet.redis.admin
    assert 0 < int(str(redis.ttl(f"gh:client:{unused}"))) <= 86400
    assert int(str(redis.ttl(f"gh:client:{used}"))) > 30 * 86400
    assert redis.zscore("gh:clients:unused", f"gh:client:{unused}") is not None
    assert redis.zscore("gh:clients:unused", f"gh:client:{used}") is None


def test_no_secret_is_kept_as_it_is(browser: Browser, fleet: Fleet) -> None:
    registered = browser.register(token_endpoint_auth_method="client_secret_post")
    record = str(fleet.redis.admin.get(f"gh:client:{registered['client_id']}"))
    assert registered["client_secret"] not in record
    assert registered["registration_access_token"] not in record


# covers: dcr-flood
def test_a_flood_is_slowed_and_others_are_not(node: Node) -> None:
    with Browser(node, "192.0.2.1") as flood, Browser(node, "192.0.2.2") as other:
        statuses = [flood.post("/register", json={}).status_code for _ in range(420)]
        assert statuses.count(429) > 20
        assert statuses[:300].count(429) == 0
        assert flood.post("/register", json={}).headers.get("retry-after")
        assert other.post("/register", json={}).status_code == 400


def test_a_name_cannot_hide_or_reorder(browser: Browser) -> None:
    assert browser.register(client_name="Bank\u202e\u200b\n evil\x00" + "x" * 500)["client_name"].startswith(
        "Bank evilx"
    )
    assert len(browser.register(client_name="y" * 500)["client_name"]) == 100
