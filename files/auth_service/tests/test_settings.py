"""Configuration that is wrong: exit status 78, a sentence for each variable, and never a value."""

import json
from pathlib import Path

import pytest
from conftest import Fleet, keyring
from test_faults import run

from gatehouse_auth import admin
from gatehouse_auth.settings import Settings, load_secrets
from gatehouse_service.configuration import ConfigurationError, addresses, load

SECRET = "s3cr3t-value"


@pytest.fixture
def configured(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good configuration in this process; gives the credentials' folder."""
    for name, value in fleet.environment.items():
        monkeypatch.setenv(name, value)
    for name, value in fleet.credentials.items():
        (tmp_path / name).write_text(value)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    return tmp_path


def test_a_good_configuration(configured: Path) -> None:
    settings = load(Settings)
    secrets = load_secrets(settings)
    assert addresses(settings.listen) == [("127.0.0.1", 18000)]
    assert "machine-secret" not in repr(secrets)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATEHOUSE_ISSUER", f"http://{SECRET}.example.test"),
        ("GATEHOUSE_ISSUER", f"https://{SECRET}.example.test/path"),
        ("GATEHOUSE_ISSUER", ""),
        ("GATEHOUSE_RESOURCES", f"/{SECRET}.json"),
        ("GATEHOUSE_PROVIDERS", "{}"),
        (
            "GATEHOUSE_PROVIDERS",
            json.dumps({"github": {"client_id": "x", "base_url": f"http://{SECRET}.test"}}),
        ),
        ("GATEHOUSE_LISTEN", SECRET),
        ("GATEHOUSE_REDIS_URL", f"redis://auth:{SECRET}@127.0.0.1:1/0"),
        ("GATEHOUSE_REDIS_URL", f"http://{SECRET}:6379/0"),
        ("GATEHOUSE_REDIS_URL", f"redis+sentinel://auth@{SECRET}:1,b:1,c:1"),
        ("GATEHOUSE_ACCESS_TOKEN_SECONDS", SECRET),
        ("GATEHOUSE_RECHECK_SECONDS", SECRET),
        ("GATEHOUSE_RECHECK_SECONDS", "60"),
    ],
)
def test_a_wrong_variable_is_named(
    configured: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        load(Settings)
    assert variable in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        SECRET,
        json.dumps([SECRET]),
        json.dumps({"Echo!": {"resource": "https://e.example.test/mcp"}}),
        json.dumps({"echo": {"resource": f"https://{SECRET}.example.test/mcp/"}}),
        json.dumps({"echo": {"resource": "https://e.example.test", SECRET[:3]: 1}}),
        json.dumps({"a": {"resource": "https://e.test"}, "b": {"resource": "https://e.test"}}),
    ],
)
def test_a_wrong_file_of_resources(
    configured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = configured / "resources.json"
    file.write_text(content)
    monkeypatch.setenv("GATEHOUSE_RESOURCES", str(file))
    monkeypatch.setattr("sys.argv", ["admin", "check-configuration"])
    with pytest.raises(SystemExit) as caught:
        admin.main()
    assert caught.value.code == 78
    said = capsys.readouterr().err
    assert "GATEHOUSE_RESOURCES" in said
    assert SECRET not in said


def test_a_good_configuration_passes_the_check(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["admin", "check-configuration"])
    admin.main()


@pytest.mark.parametrize(
    ("credential", "value"),
    [
        ("keyring.json", "{}"),
        ("keyring.json", SECRET),
        ("keyring.json", keyring("next")),
        ("keyring.json", keyring("current", "current")),
        ("keyring.json", keyring("current").replace("P-256", SECRET)),
        ("users.json", SECRET),
        ("users.json", json.dumps({"ana": {"password_hash": SECRET}})),
        ("users.json", json.dumps({"git:ana": {"password_hash": "$argon2id$x"}})),
        ("users.json", json.dumps({"gatehouse-probe": {"password_hash": "$argon2id$x"}})),
        ("redis_password", ""),
        ("redis_ca.pem", SECRET),
        ("client_machine", ""),
    ],
)
def test_a_wrong_credential_is_named(configured: Path, credential: str, value: str) -> None:
    (configured / credential).write_text(value)
    with pytest.raises(ConfigurationError) as caught:
        load_secrets(load(Settings))
    assert credential in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("seconds", "needed"), [("3600", True), ("0", False)])
def test_a_key_is_needed_where_providers_are_asked_again(
    configured: Path, monkeypatch: pytest.MonkeyPatch, seconds: str, needed: bool
) -> None:
    monkeypatch.setenv("GATEHOUSE_PROVIDERS", json.dumps({"github": {"client_id": "x"}, "local": {}}))
    monkeypatch.setenv("GATEHOUSE_RECHECK_SECONDS", seconds)
    (configured / "github_client_secret").write_text("x")
    (configured / "recheck_key").unlink()
    if needed:
        with pytest.raises(ConfigurationError, match="recheck_key"):
            load_secrets(load(Settings))
    else:
        assert load_secrets(load(Settings)).recheck_key == ""


def test_all_problems_are_told_at_once_with_status_78(fleet: Fleet) -> None:
    result = run(
        fleet,
        "gatehouse_auth",
        GATEHOUSE_ISSUER=SECRET,
        GATEHOUSE_PROVIDERS="{}",
        GATEHOUSE_DRAIN_SECONDS="0",
    )
    assert result.returncode == 78
    assert all(name in result.stderr for name in ("_ISSUER", "_PROVIDERS", "_DRAIN_SECONDS"))
    assert SECRET not in result.stderr
    assert "Traceback" not in result.stderr
