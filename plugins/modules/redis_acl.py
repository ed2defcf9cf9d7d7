# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Redis' users, in its file and in the Redis that runs."""

DOCUMENTATION = r"""
module: redis_acl
short_description: Make Redis' users what they should be
description:
  - Writes the ACL file, with digests instead of passwords, and brings the running Redis to the same state, user by user.
    C(default) is off, and every other user that is not named goes.
  - A user is changed in place with C(ACL SETUSER), never with C(ACL LOAD), which closes the connections of all users up to
    Redis 7.0.
  - Neither a password nor a digest is ever part of a diff or a message.
options:
  users:
    description: Rules by user, keys and channels, then C(-@all) or C(+@all) and what is added to it; nothing is taken away.
    type: dict
    required: true
  passwords:
    description: Passwords of each user, all accepted; at least 32 characters without white space.
    type: dict
    required: true
  admin:
    description: The user that makes the changes.
    type: str
    default: admin
  path:
    description: The ACL file.
    type: path
    default: /etc/gatehouse/redis/users.acl
  group:
    description: Group that may read it.
    type: str
    default: gatehouse-redis
  socket:
    description: Redis' socket.
    type: path
    default: /run/gatehouse-redis/redis.sock
  address:
    description: Address at which Redis must answer as well.
    type: str
  port:
    description: Port at that address.
    type: int
    default: 6379
  wait:
    description: Seconds within which Redis must answer. With 0 it need not run.
    type: int
    default: 0
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Make the running Redis know its users
  gatehouse.mcp.redis_acl:
    users:
      auth: "~gh:* &gh:* -@all +get +set"
    passwords: "{{ redis_passwords }}"
"""

RETURN = r"""
running:
  description: Whether Redis runs.
  type: bool
  returned: always
"""

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gatehouse.mcp.plugins.module_utils.redis import (
    REPLY_SECONDS,
    Redis,
    RedisFault,
    on_socket,
    reach,
)
from ansible_collections.gatehouse.mcp.plugins.module_utils.slots import group_id, read, write_file

PASSWORD_MIN = 32


def in_order(rules: str) -> str:
    """Rules in one order, since Redis 7.0 lists them in another each time; they only add, so none is lost."""

    def place(word: str) -> tuple[int, str]:
        kind = "~&".find(word[0])
        return (kind, word) if kind >= 0 else (3 if word[1:] != "@all" else 2, word)

    return " ".join(sorted(rules.split(), key=place))


@dataclass(frozen=True)
class User:
    """A user: on or off, digests of its passwords, and rules in order."""

    name: str
    on: bool
    digests: frozenset[str]
    rules: str

    def line(self) -> str:
        """Its line of the ACL file."""
        words = [
            "user",
            self.name,
            "on" if self.on else "off",
            *(f"#{digest}" for digest in sorted(self.digests)),
        ]
        return " ".join([*words, self.rules]).strip()

    def shown(self, others: frozenset[str], word: str) -> str:
        """The line as it may be shown: a password is `kept` or what `word` says."""
        marks = sorted("#kept" if digest in others else f"#{word}" for digest in self.digests)
        return " ".join(["user", self.name, "on" if self.on else "off", *marks, self.rules]).strip() + "\n"

    def setuser(self) -> list[str]:
        """The command that makes it so, in one step."""
        passwords = [f"#{digest}" for digest in sorted(self.digests)]
        return [
            "ACL",
            "SETUSER",
            self.name,
            "reset",
            "on" if self.on else "off",
            *passwords,
            *self.rules.split(),
        ]


Users = dict[str, User]
# Off: nobody signs in as it. With all rights: Redis replays transactions of its append-only file as this user, and what
# it may not do then is dropped without a word.
DEFAULT = User("default", False, frozenset(), "~* &* +@all")


def wanted_users(rules: Mapping[str, str], passwords: Mapping[str, list[str]]) -> Users:
    """The users as they should be.

    Raises:
        ValueError: A password is missing or of a bad form; the message does not quote it.
    """
    users = {"default": DEFAULT}
    for name, rule in sorted(rules.items()):
        given = passwords.get(name)
        if not given:
            raise ValueError(f"{name} has no password; give it at least one")
        for password in given:
            if len(password) < PASSWORD_MIN or any(character.isspace() for character in password):
                raise ValueError(
                    f"a password of {name} is too short or has white space; use at least {PASSWORD_MIN} random characters"
                )
        digests = frozenset(hashlib.sha256(password.encode()).hexdigest() for password in given)
        users[name] = User(name, True, digests, in_order(rule))
    return users


def render(users: Users) -> str:
    """The ACL file, which may hold no comment."""
    return "".join(f"{user.line()}\n" for user in users.values())


def parse(text: str) -> Users:
    """The users of an ACL file as `render` writes it."""
    users = {}
    for line in text.splitlines():
        _user, name, state, *words = line.split()
        digests = frozenset(word[1:] for word in words if word.startswith("#"))
        users[name] = User(
            name,
            state == "on",
            digests,
            in_order(" ".join(word for word in words if not word.startswith("#"))),
        )
    return users


def live_users(redis: Redis) -> Users:
    """The users that the running Redis knows."""
    users = {}
    for name in redis.command("ACL", "USERS"):
        answer = redis.command("ACL", "GETUSER", name)
        found = dict(zip(answer[::2], answer[1::2], strict=True))
        rules = [found["keys"], found["channels"], found["commands"]]
        # What a user of ours never has makes it differ from every user of ours.
        rules += ["nopass"] if "nopass" in found["flags"] else []
        rules += ["selectors"] if found.get("selectors") else []
        users[name] = User(
            name, "on" in found["flags"], frozenset(found["passwords"]), in_order(" ".join(rules))
        )
    return users


def diff(before: Users, after: Users) -> dict[str, str]:
    """What changes, without passwords and digests."""

    def of(users: Users, name: str) -> frozenset[str]:
        return users[name].digests if name in users else frozenset()

    return {
        "before": "".join(user.shown(of(after, name), "removed") for name, user in sorted(before.items())),
        "after": "".join(user.shown(of(before, name), "added") for name, user in sorted(after.items())),
    }


def bring(redis: Redis, wanted: Users, check_mode: bool) -> tuple[bool, Users]:
    """Bring the running Redis to the wanted users.

    Returns:
        Whether anything changed, and the users as they were.
    """
    before = live_users(redis)
    if check_mode or before == wanted:
        return before != wanted, before
    for name, user in wanted.items():
        if before.get(name) != user:
            redis.command(*user.setuser())
    for name in before.keys() - wanted.keys():
        redis.command("ACL", "DELUSER", name)
    # Redis may list rules in other words than ours; that alone is no change.
    return live_users(redis) != before, before


def main() -> None:
    """Ansible's entry point."""
    module = AnsibleModule(
        argument_spec={
            "users": {"type": "dict", "required": True},
            "passwords": {"type": "dict", "required": True, "no_log": True},
            "admin": {"type": "str", "default": "admin"},
            "path": {"type": "path", "default": "/etc/gatehouse/redis/users.acl"},
            "group": {"type": "str", "default": "gatehouse-redis"},
            "socket": {"type": "path", "default": "/run/gatehouse-redis/redis.sock"},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 6379},
            "wait": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        wanted = wanted_users(given["users"], given["passwords"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    path = Path(given["path"])
    text = read(path)
    changed = text != render(wanted)
    before = parse(text) if text else {}
    if changed and not module.check_mode:
        write_file(path, render(wanted), 0o640, group_id(given["group"]))

    admin, passwords = given["admin"], given["passwords"][given["admin"]]
    running = os.path.exists(given["socket"]) or bool(given["wait"])
    try:
        if running:
            redis = reach(lambda: on_socket(given["socket"]), admin, passwords, given["wait"])
            differed, live = bring(redis, wanted, module.check_mode)
            if differed:
                changed, before = True, live
            redis.close()
        if running and given["address"]:
            where = (given["address"], given["port"])
            reach(
                lambda: socket.create_connection(where, REPLY_SECONDS), admin, passwords, given["wait"]
            ).close()
    except RedisFault as error:
        module.fail_json(msg=f"{error}. Its log: journalctl -u gatehouse-redis", changed=changed)
    module.exit_json(changed=changed, running=running, diff=diff(before, wanted))


if __name__ == "__main__":
    main()
