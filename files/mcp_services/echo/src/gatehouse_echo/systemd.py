"""Readiness and watchdog messages to systemd (sd_notify(3))."""

import asyncio
import os
import socket


def notify(state: str) -> None:
    """Send a state such as `READY=1`; nothing happens outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        # A leading @ stands for the abstract namespace.
        address = f"\0{address[1:]}" if address.startswith("@") else address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)


async def watchdog() -> None:
    """Say twice per interval that the event loop turns; returns at once where systemd does not ask."""
    seconds = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
    while seconds:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds / 2)
