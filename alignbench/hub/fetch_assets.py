"""How assets get onto the disk: listed with licence and size first, continued where they stopped, checked
before they get their final name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alignbench.errors import UserError
from alignbench.files import cache_root, file_sha256
from alignbench.hub import download
from alignbench.hub.assets import FOLDER, AssetStatus, locate, verify
from alignbench.hub.weights import Fetched, Log
from alignbench.registry.protocol import AssetCard


@dataclass(frozen=True)
class _Remote:
    """One file to download; has what `transfer.RemoteFile` asks for."""

    repo: str
    revision: str
    path: str
    url: str = ""


def fetch(cards: Mapping[str, AssetCard], *, dry_run: bool = False, say: Log | None = None) -> list[Fetched]:
    """Download assets that are not there yet, and check all of them.

    Calling again continues a broken transfer where it stopped. A file gets its final name only after its size
    and digest were checked.

    Args:
        cards: {name: card}.
        dry_run: say what would be done; needs no network and hashes nothing.
        say: called with one line at a time; licences and sizes come before the first byte.

    Returns:
        One entry an asset. Those without a public source are reported, not an error.

    Raises:
        UserError: no network, no such file there, a wrong size or digest, not enough room.
        RunFailed: the disk filled up or the connection broke half-way; the part that arrived is kept.
    """
    say = say or (lambda line: None)
    statuses = {name: locate(name, card) for name, card in cards.items()}
    for name, card in cards.items():
        say(describe(name, card, statuses[name]))
    for status in statuses.values():
        if status.path is not None and not status.ok:
            raise UserError(status.reason, fix=status.fix)
    return [_fetch_one(name, card, statuses[name], dry_run, say) for name, card in cards.items()]


def describe(name: str, card: AssetCard, status: AssetStatus) -> str:
    """Say in one line what an asset is, under which licence, and whether it is here."""
    source = card.url or (f"{card.repo} @ {card.revision[:12]}" if card.repo else "no public source")
    here = f"here: {status.path}" if status.ok else f"{source} → {status.expected}"
    return f"{name}: licence {card.licence or 'not stated'}, {download.human_size(card.size)}, {here}"


def _fetch_one(name: str, card: AssetCard, status: AssetStatus, dry_run: bool, say: Log) -> Fetched:
    if status.ok and status.path is not None:
        if dry_run:
            return Fetched(name, status.path, "present", card.size, None)
        say(f"checking {status.path}")
        return Fetched(name, status.path, "present", card.size, verify(name, card, status).sha256)
    if not (card.url or card.repo):
        say(f"{name}: {status.reason} → {status.fix}")
        return Fetched(name, status.expected, "bring your own", None, None)
    if dry_run:
        return Fetched(name, status.expected, "would download", card.size, None)
    _download(name, card, say)
    file = verify(name, card, locate(name, card))
    return Fetched(name, file.path, "downloaded", card.size, file.sha256)


def _download(name: str, card: AssetCard, say: Log) -> None:
    home = cache_root() / "assets" / name
    # Of alternatives the first is the one its authors recommend.
    wanted = [names.split("|")[0] for names in card.files] if card.file == FOLDER else [card.file]
    absent = [
        (_Remote(card.repo, card.revision, path, card.url), home / path)
        for path in wanted
        if not (home / path).is_file()
    ]
    if card.url:
        offers = [download.ask_url(file.url, file, target) for file, target in absent]
    else:
        offers = download.ask(name, absent, kind=card.kind)
    for offer in offers:
        _check_offer(name, card, offer)
    download.check_room(offers)
    for offer in offers:
        say(f"downloading {offer.file.path}, {download.human_size(offer.remaining)} to go")
        download.run(offer)
        digest = file_sha256(offer.partial)
        promised = (card.sha256 if card.file != FOLDER else None) or offer.sha256 or digest
        if digest != promised:
            raise UserError(
                f"{offer.partial} has SHA-256 {digest}, wanted is {promised}",
                fix=f"delete it and run the same command again; if it differs again, its source changed: "
                f"--set assets.{name}=PATH with a copy you trust",
            )
        offer.partial.replace(offer.target)


def _check_offer(name: str, card: AssetCard, offer: download.Transfer[_Remote]) -> None:
    """Raise UserError if the source has another file than the card means, before gigabytes are moved."""
    if card.file == FOLDER:
        return
    sha256 = offer.sha256 or card.sha256
    if offer.size != (card.size or offer.size) or (card.sha256 or sha256) != sha256:
        raise UserError(
            f"{offer.url} is not the file that asset {name!r} means: it has {offer.size} bytes with SHA-256 "
            f"{offer.sha256 or 'unknown'}, wanted are {card.size or 'any'} with {card.sha256 or 'any'}",
            fix=f"--set assets.{name}=PATH with a copy you trust, or update the card",
        )
