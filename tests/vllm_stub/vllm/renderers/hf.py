"""As there."""

from __future__ import annotations

from typing import Any


def resolve_chat_template(**_rest: Any) -> None:
    """No chat template."""
