"""`python -m gatehouse_auth.admin`: what an operator and the health checks need on the host."""

import argparse
import getpass
import sys

from argon2 import PasswordHasher

from gatehouse_auth.oauth.tokens import probe_token
from gatehouse_auth.settings import Settings, load_keyring
from gatehouse_service.configuration import ConfigurationError, load, stop


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m gatehouse_auth.admin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    probe = commands.add_parser("probe-token", help="print an access token of 60 seconds for one service")
    probe.add_argument("--service", required=True, help="the service's name")
    commands.add_parser("check-configuration", help="say what is wrong with the configuration, if anything")
    commands.add_parser("hash-password", help="print the argon2 hash of the password on standard input")
    arguments = parser.parse_args()
    if arguments.command == "probe-token":
        _probe_token(arguments.service)
    elif arguments.command == "check-configuration":
        _check_configuration()
    else:
        _hash_password()


def _probe_token(service: str) -> None:
    try:
        settings = load(Settings)
        keyring = load_keyring()
    except ConfigurationError as error:
        stop("\n".join(error.problems))
    resource = settings.resources.get(service)
    if resource is None:
        stop("--service: GATEHOUSE_RESOURCES has no such service", 2)
    token = probe_token(settings.issuer, keyring, resource.resource, " ".join(resource.scopes))
    sys.stdout.write(f"{token}\n")


def _check_configuration() -> None:
    try:
        load(Settings)
    except ConfigurationError as error:
        stop("\n".join(error.problems))


def _hash_password() -> None:
    password = getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not password:
        stop("the password is empty", 2)
    sys.stdout.write(f"{PasswordHasher().hash(password)}\n")


if __name__ == "__main__":
    main()
