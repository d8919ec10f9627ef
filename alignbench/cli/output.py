"""Printing for programs: JSON on standard output, and nothing else there."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console


def print_json(value: Any) -> None:
    """Print plain data as JSON that any reader takes.

    Characters that the output's encoding lacks are escaped, and numbers that JSON lacks are null.
    """
    console = Console()
    strict = json.loads(json.dumps(value), parse_constant=lambda name: None)
    console.print_json(data=strict, highlight=False, ensure_ascii=not console.encoding.startswith("utf"))
