"""From registration to a call."""

from urllib.parse import unquote

from conftest import ECHO, ISSUER, Browser, Node, tokens_of
from joserfc import jws

from gatehouse_auth.oauth.tokens import audience_of


def test_a_client_registers_signs_in_calls_and_refreshes(
    browser: Browser, node: Node, client_id: str
) -> None:
    tokens = browser.tokens(client_id)
    assert tokens.body["token_type"] == "Bearer"
    assert tokens.body["expires_in"] == 3600
    assert tokens.body["scope"] == "mcp"
    answer = node.check(tokens.access)
    assert answer.status_code == 200
    assert answer.headers["x-gatehouse-user"] == "ana"
    assert answer.headers["x-gatehouse-client"] == client_id
    refreshed = tokens_of(browser.refresh(client_id, tokens.refresh))
    assert refreshed.refresh != tokens.refresh
    assert node.check(refreshed.access).status_code == 200


# covers: jwt-access-token
def test_the_access_token_is_what_rfc_9068_says(browser: Browser, client_id: str) -> None:
    token = browser.tokens(client_id).access
    header = jws.extract_compact(token.encode()).headers()
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": "key-0"}
    assert audience_of(token) == ECHO
    payload = jws.extract_compact(token.encode()).payload
    for claim in (
        b'"iss":"%s"' % ISSUER.encode(),
        b'"sub":"ana"',
        b'"jti":',
        b'"iat":',
        b'"exp":',
        b'"client_id":',
    ):
        assert claim in payload.replace(b'": ', b'":')


# covers: identity-headers
def test_what_a_person_is_called_reaches_the_service_as_safe_headers(
    browser: Browser, node: Node, client_id: str
) -> None:
    headers = node.check(browser.tokens(client_id).access).headers
    assert "x-evil" not in headers
    assert headers["x-gatehouse-name"].isascii()
    assert unquote(headers["x-gatehouse-name"]) == "Ána X-Evil: 1, “Q”"
    assert [unquote(group) for group in headers["x-gatehouse-groups"].split(",")] == ["a,b", "staff"]
    assert headers["x-gatehouse-email"] == "ana@example.com"


# covers: audit
def test_no_secret_and_no_token_is_logged(browser: Browser, node: Node, client_id: str) -> None:
    code = browser.code(client_id)
    tokens = tokens_of(browser.exchange(client_id, code))
    node.check(tokens.access)
    node.check(tokens.access + "x")
    node.records("token")
    text = node.log.read_text()
    for secret in (code, tokens.access, tokens.refresh, browser.verifier, "correct horse"):
        assert secret not in text
    assert tokens.access.rpartition(".")[2] not in text
