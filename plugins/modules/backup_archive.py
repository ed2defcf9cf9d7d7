# Copyright: Gatehouse contributors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Documentation of the action plugin of the same name."""

DOCUMENTATION = r"""
module: backup_archive
short_description: Make the encrypted archive of a backup
description:
  - Runs on the controller, where C(age) and C(age-keygen) must be. Each archive has a key of its own, which is encrypted for
    the recipients; its secret half is on no disk and in no result.
  - The archive is a tar of files for C(age), which its own programs open as well.
options:
  state:
    description:
      - C(checked) sees that an archive could be made, C(begun) makes its key and a folder for its parts, C(finished) the
        archive of them, beside that folder.
    type: str
    choices: [checked, begun, finished]
    required: true
  recipients:
    description: Public keys, C(age1…) or of SSH. With C(checked) and C(begun).
    type: list
    elements: str
  folder:
    description: Folder of the archives with C(begun), made if need be; with C(finished) the folder that C(begun) gave.
    type: path
  recipient:
    description: The archive's own public key, as C(begun) gave it. With C(finished).
    type: str
  domain:
    description: The gateway's domain. With C(finished).
    type: str
  secrets:
    description: The fleet's store of secrets. With C(finished).
    type: dict
  parts:
    description: As C(gatehouse.mcp.backup_parts) gives them. With C(finished).
    type: list
    elements: dict
author: Gatehouse contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Begin the archive
  gatehouse.mcp.backup_archive:
    state: begun
    recipients: [age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]
    folder: backups
  run_once: true
  register: begun
"""

RETURN = r"""
folder:
  description: Folder for the parts.
  type: str
  returned: with C(state=begun)
recipient:
  description: Public key that parts are to be encrypted for.
  type: str
  returned: with C(state=begun)
path:
  description: The archive.
  type: str
  returned: with C(state=finished)
bytes:
  description: Its size.
  type: int
  returned: with C(state=finished)
"""
