"""What the ends of links agree on in tests; imported by processes that need little else."""

from __future__ import annotations

SECRET = b"secret of the test house"
MAX_BODY_BYTES = 1024 * 1024
