"""`python -m alignbench.rewards SPEC`: serve a reward over HTTP until interrupted; see `remote`."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Sequence

import torch

from alignbench.errors import UserError
from alignbench.registry.lookup import Registry
from alignbench.registry.reward_spec import resolve
from alignbench.rewards.build import build_raw
from alignbench.rewards.remote import serve

_log = logging.getLogger("alignbench.rewards")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m alignbench.rewards", description=__doc__)
    parser.add_argument("reward", help="specification without transforms, e.g. 'hpsv2.1'")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind; there is no authentication")
    parser.add_argument("--port", type=int, default=8731)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        resolved = resolve(options.reward, Registry.default())
        if resolved.spec.transforms or resolved.common["placement"] != "same":
            raise UserError(
                "a server gives raw scores from where it runs",
                fix="write transforms and placement at the client",
            )
        reward = build_raw(resolved, torch.device(options.device))
        server = serve(reward, options.host, options.port, name=resolved.name, options=resolved.options)
    except (UserError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    host, port = server.server_address[:2]
    _log.info("reward %s at http://%s:%s", resolved.name, host, port)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
