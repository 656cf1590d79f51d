"""Which running Headrace a command means: from its options, or from the state folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from command import instance
from command.client import AdminClient
from headrace.config.args import Listen
from headrace.config.types import SecretRef
from headrace.secrets import admin_token

DEFAULTS = Listen()


@dataclass(frozen=True, slots=True)
class Target:
    """Where to ask and with what; `found` is None when only an address is known."""

    admin: str
    http: str
    token: SecretRef | None = None
    path: Path | None = None
    found: instance.Instance | None = None

    def client(self, timeout_s: float = 5.0) -> AdminClient:
        """A client with this target's token."""
        return AdminClient(self.admin, admin_token(self.token), timeout_s=timeout_s)


def find_target(admin: str | None, token_file: str | None) -> Target:
    """The instance at `admin`, else the only one that runs here, else the default ports."""
    token = SecretRef(file=token_file) if token_file else None
    running = list(instance.running())
    if admin is not None:
        running = [entry for entry in running if entry[1].admin == admin]
    if len(running) > 1:
        choices = ", ".join(f"--admin {found.admin}" for _, found in running)
        raise click.UsageError(f"several run here; choose one: {choices}")
    if running:
        path, found = running[0]
        return Target(found.admin, found.http, token or found.admin_token, path, found)
    return Target(admin or DEFAULTS.admin, DEFAULTS.http, token)
