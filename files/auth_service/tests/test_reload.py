"""Services come and go, and rules change, while the service runs (SIGHUP)."""

import json
import threading
from typing import Any

import pytest
from conftest import ECHO, FILES, RESOURCES, Fleet

NOTES = "https://notes.example.test/mcp"
WITH_NOTES: dict[str, Any] = {**RESOURCES, "notes": {"resource": NOTES, "allow": {"everyone": True}}}


def test_a_service_comes_and_goes(fleet: Fleet) -> None:
    node = fleet.start()
    with node.browser() as browser:
        client_id = browser.register()["client_id"]
        assert "<code>invalid_target</code>" in browser.authorize(client_id, resource=NOTES).text
        assert node.check(None, "notes").status_code == 503
        node.reload(json.dumps(WITH_NOTES))
        tokens = browser.tokens(client_id, resource=NOTES)
        assert node.check(tokens.access, "notes").status_code == 200
        assert node.http.get(f"{node.base}/internal/resource/notes").json()["resource"] == NOTES
        node.reload(json.dumps(RESOURCES))
        assert node.check(tokens.access, "notes").status_code == 503
        assert browser.refresh(client_id, tokens.refresh).json()["error"] == "invalid_grant"
        # Back again, nothing was lost.
        node.reload(json.dumps(WITH_NOTES))
        assert node.check(tokens.access, "notes").status_code == 200
        assert browser.refresh(client_id, tokens.refresh).status_code == 200


# covers: access-again
def test_a_narrower_allow_list_holds_for_tokens_that_were_found_good(fleet: Fleet) -> None:
    node = fleet.start()
    with node.browser() as browser:
        tokens = browser.tokens(browser.register()["client_id"])
        assert [node.check(tokens.access).status_code for _ in range(3)] == [200] * 3
        node.reload(json.dumps({**RESOURCES, "echo": {"resource": ECHO, "allow": {"users": ["bob"]}}}))
        assert node.check(tokens.access).status_code == 403
        node.reload(json.dumps(RESOURCES))
        assert node.check(tokens.access).status_code == 200


@pytest.mark.parametrize("wrong", ["", "{", '{"Echo!": {"resource": "https://e.example.test/mcp"}}'])
def test_a_wrong_file_changes_nothing(fleet: Fleet, wrong: str) -> None:
    node = fleet.start()
    with node.browser() as browser:
        tokens = browser.tokens(browser.register()["client_id"])
        node.reload(wrong)
        [refused] = node.records("reload_refused")
        assert "GATEHOUSE_RESOURCES" in refused["problems"][0]
        assert node.check(tokens.access).status_code == 200


def test_no_check_fails_while_it_reloads(fleet: Fleet) -> None:
    node = fleet.start()
    with node.browser() as browser:
        tokens = browser.tokens(browser.register()["client_id"], resource=FILES, scope=None)
    answers: set[int] = set()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.add(node.check(tokens.access, "files").status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(5):
        node.reload(json.dumps(WITH_NOTES))
        node.reload(json.dumps(RESOURCES))
    over.set()
    asking.join()
    assert answers == {200}
