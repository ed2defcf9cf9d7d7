"""The authorization endpoint, consent, and the local sign-in."""

import html
import re
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ECHO, FILES, ISSUER, REDIRECT, Browser, Fleet, Node, answer_of

LOOPBACK = "http://127.0.0.1:53682/callback"


# covers: pkce, iss
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"resource": None}, "invalid_target"),
        ({"resource": "https://other.example.test/mcp"}, "invalid_target"),
        ({"resource": ECHO + "/"}, "invalid_target"),
        ({"scope": "files:read"}, "invalid_scope"),
        ({"scope": "admin"}, "invalid_scope"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": None}, "unsupported_response_type"),
    ],
)
def test_errors_go_to_the_client_with_iss_and_state(
    browser: Browser, changes: dict[str, str | None], error: str
) -> None:
    loopback = browser.register(LOOPBACK)["client_id"]
    for client_id, redirect in (("machine", REDIRECT), (loopback, LOOPBACK)):
        response = browser.authorize(client_id, **{"redirect_uri": redirect, **changes})
        assert response.headers["location"].startswith(f"{redirect}?")
        answer = answer_of(response)
        assert (answer["error"], answer["iss"], answer["state"]) == (error, ISSUER, "st-1")


# covers: open-redirector, iss
def test_nobody_is_sent_to_a_strangers_address_unasked(browser: Browser, client_id: str) -> None:
    page = browser.authorize(client_id, scope="admin", state="<b>&")
    assert page.status_code == 400
    assert "location" not in page.headers
    assert "refresh" not in page.headers
    assert "<strong>client.example.test</strong>" in page.text
    assert "invalid_scope" in page.text
    assert "<b>" not in page.text
    [link] = re.findall(r'<a href="([^"]+)"', page.text)
    assert html.unescape(link).startswith(f"{REDIRECT}?error=invalid_scope&")
    answer = parse_qs(urlsplit(html.unescape(link)).query)
    assert (answer["iss"], answer["state"]) == ([ISSUER], ["<b>&"])


def test_apps_that_the_operator_let_register_are_sent_back_to(browser: Browser) -> None:
    cursor = "cursor://anysphere.cursor-mcp/oauth/callback"
    client_id = browser.register(cursor)["client_id"]
    answer = browser.authorize(client_id, redirect_uri=cursor, scope="admin")
    assert answer.headers["location"].startswith(f"{cursor}?error=invalid_scope&")


# covers: redirect-match
@pytest.mark.parametrize(
    "redirect",
    [
        "https://evil.example.test/callback",
        REDIRECT + "/x",
        REDIRECT + "?a=b",
        REDIRECT.replace("https", "http"),
        "https://client.example.test@evil.example.test/callback",
        "https://client.example.test:444/callback",
        "https://CLIENT.example.test/callback",
        "https://client.example.test/%63allback",
        None,
    ],
)
def test_a_redirect_uri_that_is_not_the_clients_is_never_followed(
    browser: Browser, client_id: str, redirect: str | None
) -> None:
    response = browser.authorize(client_id, redirect_uri=redirect)
    assert response.status_code == 400
    assert "location" not in response.headers
    assert "<h1>" in response.text


# covers: stale-client
def test_a_stale_client_gets_a_page_that_a_person_understands(browser: Browser) -> None:
    response = browser.authorize("ghc_" + "A" * 22)
    assert response.status_code == 400
    assert "location" not in response.headers
    assert "not known here" in response.text
    assert "frame-ancestors 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    "query", ["%ff", "a=%ff", "client_id=a&client_id=b", "client_id=%00", "state=%0d%0aX:1"]
)
def test_a_malformed_request_gets_a_page(browser: Browser, query: str) -> None:
    response = browser.get(f"/authorize?{query}")
    assert response.status_code == 400
    assert "location" not in response.headers


# covers: redirect-match
def test_a_redirects_own_query_stays_as_it_is(browser: Browser) -> None:
    redirect = f"{REDIRECT}?flag&a=b%20c"
    client_id = browser.register(redirect)["client_id"]
    granted = browser.sign_in(browser.consent(browser.authorize(client_id, redirect_uri=redirect)))
    assert granted.headers["location"].startswith(f"{redirect}&code=")
    denied = browser.consent(browser.authorize(client_id, redirect_uri=redirect), "deny")
    assert denied.headers["location"].startswith(f"{redirect}&error=access_denied&")
    page = browser.authorize(client_id, redirect_uri=redirect, scope="admin")
    assert f'href="{html.escape(redirect)}&amp;error=' in page.text


# covers: redirect-match
def test_loopback_redirects_may_have_any_port(browser: Browser, node: Node) -> None:
    client_id = browser.register("http://localhost/callback", "http://127.0.0.1:1234/cb/7")["client_id"]
    for redirect in ("http://localhost:53682/callback", "http://127.0.0.1:5/cb/7"):
        tokens = browser.tokens(client_id, redirect_uri=redirect)
        assert node.check(tokens.access).status_code == 200
    for redirect in (
        "http://localhost:5/other",
        "http://127.0.0.1:5/callback",
        "http://localhost.evil.example/callback",
    ):
        assert browser.authorize(client_id, redirect_uri=redirect).status_code == 400


# covers: consent
def test_consent_names_client_host_service_and_scopes(browser: Browser) -> None:
    client_id = browser.register(client_name="<script>alert(1)</script>")["client_id"]
    started = browser.authorize(client_id)
    page = browser.get(started.headers["location"])
    assert "&lt;script&gt;" in page.text
    assert "<script" not in page.text
    for part in ("client.example.test", ECHO, "Echo &lt;service&gt;", "<code>mcp</code>", "Lab users"):
        assert part in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self' https://client.example.test" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert "runs on a computer" not in page.text


# covers: consent
def test_consent_warns_of_a_loopback_redirect(browser: Browser) -> None:
    client_id = browser.register("http://localhost/callback")["client_id"]
    started = browser.authorize(client_id, redirect_uri="http://localhost:7777/callback")
    assert "runs on a computer" in browser.get(started.headers["location"]).text


# covers: consent-bound
def test_the_cookie_belongs_to_the_host_and_cannot_be_read(browser: Browser, client_id: str) -> None:
    cookie = browser.authorize(client_id).headers["set-cookie"]
    assert cookie.startswith("__Host-")
    for attribute in ("Secure", "HttpOnly", "SameSite=lax", "Path=/"):
        assert attribute in cookie
    assert "Domain" not in cookie


# covers: consent-bound
def test_a_page_that_is_fetched_twice_still_works(browser: Browser, client_id: str) -> None:
    first = browser.authorize(client_id)
    browser.authorize(client_id)
    page = browser.get(first.headers["location"])
    again = browser.get(first.headers["location"])
    assert browser.fields(page) == browser.fields(again)
    consented = browser.post("/consent", data={**browser.fields(page), "choice": "local"})
    assert "code" in answer_of(browser.sign_in(consented))


# covers: consent-bound
def test_another_browser_cannot_go_on(browser: Browser, node: Node, client_id: str) -> None:
    started = browser.authorize(client_id)
    page = browser.get(started.headers["location"])
    with node.browser() as victim:
        assert victim.get(started.headers["location"]).status_code == 400
        assert victim.post("/consent", data={**browser.fields(page), "choice": "local"}).status_code == 400
        victim.authorize(client_id)
        assert victim.get(started.headers["location"]).status_code == 400


# covers: consent-bound
def test_consent_cannot_be_forged_or_skipped(browser: Browser, client_id: str) -> None:
    started = browser.authorize(client_id)
    fields = browser.fields(browser.get(started.headers["location"]))
    for csrf in ("", "0" * 64, "ü"):
        assert browser.post("/consent", data={**fields, "csrf": csrf, "choice": "local"}).status_code == 400
    skipped = browser.get(f"/signin/local?flow={fields['flow']}")
    assert skipped.headers["location"].startswith(f"{ISSUER}/consent")
    forced = browser.post("/signin/local", data={**fields, "username": "ana", "password": "x"})
    assert forced.status_code == 400


def test_saying_no_goes_back_to_the_client(browser: Browser, client_id: str) -> None:
    answer = answer_of(browser.consent(browser.authorize(client_id), "deny"))
    assert (answer["error"], answer["iss"], answer["state"]) == ("access_denied", ISSUER, "st-1")


def test_one_sign_in_gives_one_code(browser: Browser, client_id: str) -> None:
    consented = browser.consent(browser.authorize(client_id))
    page = browser.get(consented.headers["location"])
    form = {**browser.fields(page), "username": "ana", "password": "correct horse battery staple"}
    cookies = dict(browser.cookies)
    assert browser.post("/signin/local", data=form).status_code == 303
    browser.cookies.update(cookies)
    assert browser.post("/signin/local", data=form).status_code == 400


# covers: no-enumeration
@pytest.mark.parametrize("name", ["ana", "nobody", "", "zoë", "a" * 5000, "<b>"])
def test_a_wrong_password_says_nothing_about_the_name(browser: Browser, client_id: str, name: str) -> None:
    consented = browser.consent(browser.authorize(client_id))
    response = browser.sign_in(consented, name, "wrong")
    assert response.status_code == 401
    assert "The user name or the password is wrong." in response.text
    assert "<b>" not in response.text
    assert "location" not in response.headers


# covers: no-enumeration
def test_an_unknown_name_takes_as_long_as_a_known_one(node: Node) -> None:
    with Browser(node, "192.0.2.77") as browser:
        consented = browser.consent(browser.authorize(browser.register()["client_id"]))
        took: dict[str, list[float]] = {}
        for attempt in range(4):
            for name in ("ana", "nobody"):
                response = browser.sign_in(consented, name, f"wrong {attempt}")
                took.setdefault(name, []).append(response.elapsed.total_seconds())
        assert min(took["nobody"]) > min(took["ana"]) / 3


# covers: no-enumeration
def test_guessing_is_slowed_for_one_name_without_shutting_the_person_out(node: Node) -> None:
    with Browser(node, "192.0.2.50") as attacker, Browser(node, "192.0.2.51") as person:
        client_id = person.register()["client_id"]
        consented = attacker.consent(attacker.authorize(client_id))
        statuses = [attacker.sign_in(consented, "bob", f"guess {number}").status_code for number in range(8)]
        assert statuses == [401] * 5 + [429] * 3
        answer = answer_of(person.sign_in(person.consent(person.authorize(client_id)), "bob"))
        assert answer["error"] == "access_denied"


# covers: limits
def test_strangers_with_many_addresses_do_not_keep_the_processor_busy(own_fleet: Fleet) -> None:
    node = own_fleet.start()
    with node.browser() as person:
        client_id = person.register()["client_id"]
        consented = person.consent(person.authorize(client_id))
        for number in range(400):
            with Browser(node, f"192.0.2.{number}") as stranger:
                stranger.cookies = person.cookies
                refused = stranger.sign_in(consented, f"stranger {number}", "guess")
            if refused.status_code == 429:
                break
            assert refused.status_code == 401
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        time.sleep(1)
        assert "code" in answer_of(person.sign_in(consented))


def test_a_person_without_access_is_refused_and_told(browser: Browser, client_id: str) -> None:
    response = browser.sign_in(browser.consent(browser.authorize(client_id)), "bob")
    answer = answer_of(response)
    assert (answer["error"], answer["iss"]) == ("access_denied", ISSUER)
    assert "code" not in answer


def test_a_service_without_an_allow_list_uses_the_general_one(browser: Browser, client_id: str) -> None:
    allowed = browser.consent(browser.authorize(client_id, resource=FILES, scope=None))
    assert "code" in answer_of(browser.sign_in(allowed, "ana"))


# covers: scopes
def test_scopes_that_the_service_needs_come_with_the_first_sign_in(browser: Browser, client_id: str) -> None:
    assert browser.tokens(client_id, scope=None).body["scope"] == "mcp"
    assert browser.tokens(client_id, scope="offline_access").body["scope"] == "mcp offline_access"


# covers: allow-lists
def test_an_empty_allow_list_lets_no_one_in_and_everyone_is_spelled_out(fleet: Fleet) -> None:
    resources = {
        "echo": {"resource": ECHO, "allow": {}},
        "files": {"resource": FILES, "allow": {"everyone": True}, "scopes": []},
    }
    with fleet.start(resources=resources, allow={"users": ["ana"]}).browser() as browser:
        client_id = browser.register()["client_id"]
        closed = browser.sign_in(browser.consent(browser.authorize(client_id, scope=None)), "ana")
        assert answer_of(closed)["error"] == "access_denied"
        opened = browser.consent(browser.authorize(client_id, scope=None, resource=FILES))
        assert "code" in answer_of(browser.sign_in(opened, "bob"))


# covers: pages-safe
def test_pages_have_labels_and_no_inline_style_or_script(browser: Browser, client_id: str) -> None:
    consented = browser.consent(browser.authorize(client_id))
    page = browser.get(consented.headers["location"]).text
    for field in re.findall(r'<input id="(\w+)"', page):
        assert f'<label for="{field}">' in page
    assert '<html lang="en">' in page
    assert not re.search(r"<script|<style|style=|\son\w+=", page)
    style = browser.get("/static/style.css")
    assert style.headers["content-type"].startswith("text/css")
    assert "prefers-color-scheme: dark" in style.text


# covers: default-resource
def test_a_sign_in_that_names_no_service_gets_the_one_that_is_configured(fleet: Fleet, node: Node) -> None:
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        assert "invalid_target" in browser.authorize(client_id, resource=None).text
    other = fleet.start(default_resource="echo")
    with other.browser() as browser:
        tokens = browser.tokens(client_id, resource=None)
        assert other.check(tokens.access).status_code == 200
        assert other.check(tokens.access, "files").status_code == 401
        named = browser.tokens(client_id, resource=FILES, scope=None)
        assert other.check(named.access, "files").status_code == 200


# covers: oauth-errors
@pytest.mark.parametrize(
    "name",
    [
        "response_type", "redirect_uri", "scope", "state", "resource", "code_challenge",
        "code_challenge_method", "prompt", "response_mode", "nonce", "request", "request_uri",
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ['a"b', "a\\b", "https:\\\\x\\", "'", "%", "{}", "~" * 3000])
def test_no_text_is_a_fault_of_ours(browser: Browser, client_id: str, name: str, text: str) -> None:
    answer = browser.authorize(client_id, **{name: text})
    assert answer.status_code in (302, 303, 400)


# covers: oauth-errors
@pytest.mark.parametrize("path", ["/token", "/revoke", "/introspect", "/device_authorization"])
@pytest.mark.parametrize("text", ['a"b', "a\\b", "'", "%", "{}", "~" * 3000])
def test_no_text_is_a_fault_of_ours_in_a_form(browser: Browser, client_id: str, path: str, text: str) -> None:
    names = (
        "grant_type", "client_id", "client_secret", "code", "redirect_uri", "code_verifier", "refresh_token",
        "scope", "resource", "token", "token_type_hint", "device_code", "assertion", "client_assertion",
        "client_assertion_type",
    )  # fmt: skip
    grants = (
        "authorization_code",
        "refresh_token",
        "client_credentials",
        "urn:ietf:params:oauth:grant-type:device_code",
        "urn:ietf:params:oauth:grant-type:jwt-bearer",
    )
    for name in names:
        for grant in grants if path == "/token" else grants[:1]:
            form = {"grant_type": grant, "client_id": client_id, name: text}
            answer = browser.post(path, data=form)
            assert answer.status_code in (200, 400, 401), (name, grant)
