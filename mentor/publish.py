"""Releases sent to the Hugging Face Hub: `push` in Python, `python -m mentor.publish` outside."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor.errors import Arguments, UserError, run_main
from mentor.hub import check_name, upload
from mentor.models.cards import LICENCE, PLACE, Card, front_matter, join_card, licence_section, split_card
from mentor.models.checkpoint import read_config
from mentor.releases import PICKLED, check_release, release_files

CARD = "README.md"
KINDS = ("generator", "image_tokenizer", "adapter")
# What the hub, or whoever loads from it, could run.
CODE = (".py", ".pyc", ".so", ".sh", ".ipynb")

_SECTION = re.compile(rf"^{LICENCE}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_LIMITS = re.compile(r"^## Limits$", re.MULTILINE)


@dataclass(frozen=True)
class Parcel:
    """What is sent of a release folder.

    Attributes:
        folder: the release folder.
        files: names of the files in it that are sent.
        left_out: names of the others.
        card: what is sent as its README.md.
        message: of the commit, unless the user has one.
    """

    folder: Path
    files: Sequence[str]
    left_out: Sequence[str]
    card: bytes
    message: str

    def size(self, name: str) -> int:
        """Bytes of one of the files as it is sent."""
        return len(self.card) if name == CARD else (self.folder / name).stat().st_size


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    licence: str | None = None,
    message: str | None = None,
) -> str:
    """The address of a release folder on the hub, where all of it now is, in one commit.

    Nothing in the folder changes; the card is sent with what the hub wants to read in it and with the release's name
    in its example.

    Args:
        folder: the release folder of a generator, an image tokenizer or an adapter.
        repo_id: OWNER/NAME on the hub; made where there is none.
        private: whether a repository that is made is hidden from others.
        revision: branch, made where there is none; None is the main one.
        token: one that may write; None is the one of HF_TOKEN or of `hf auth login`.
        licence: of the weights, as the hub names licences; None is what the card says.
        message: of the commit.

    Raises:
        UserError: the folder is no whole release or has pickled files or code in it, or the hub does not take it.
    """
    parcel = pack_up(Path(folder), repo_id, revision, licence)
    return _send(parcel, repo_id, private, revision, token, message)


def pack_up(folder: Path, repo_id: str, revision: str | None = None, licence: str | None = None) -> Parcel:
    """What `push` sends; nothing is sent yet.

    Raises:
        UserError: the name cannot be, or the folder is no whole release, or has pickled files or code in it.
    """
    check_name(repo_id)
    config = read_config(folder)
    files, left_out = release_files(folder)
    unsafe = [name for name in left_out if name.endswith(PICKLED + CODE)]
    if unsafe:
        raise UserError(
            f"{folder} has {unsafe[0]} in it: a release is safetensors and plain files, since pickled files and code "
            "can do harm where they are loaded; take it out"
        )
    if config["kind"] not in KINDS:
        raise UserError(f"{folder} is a release of kind {config['kind']!r}, which this mentor does not know: update it")
    try:
        check_release(folder)
        if CARD not in files:
            raise UserError(f"{CARD} is missing")
        text = (folder / CARD).read_text(encoding="utf-8")
        card = finish_card(text, config, repo_id if revision is None else f"{repo_id}@{revision}", licence)
    except UserError as error:
        raise UserError(f"{folder} is no whole release ({error}): copy the release folder again") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CARD} is no card ({error}): copy the release folder again") from error
    message = f"{config['kind'].replace('_', ' ')} {config.get('fingerprint', '')}, mentor {config.get('mentor', '')}"
    return Parcel(folder, files, left_out, card.encode(), message)


def finish_card(text: str, config: Mapping[str, Any], place: str, licence: str | None) -> str:
    """A card as it is sent: what its writer has said stays, what the hub wants to read is added.

    Args:
        text: the card in the release folder.
        config: the release's config.json.
        place: what loads it from the hub.
        licence: of the weights; None is what the card says.

    Raises:
        ValueError: it is no card.
    """
    facts, body = split_card(text)
    title = re.search(r"^# (.+)$", body, re.MULTILINE)
    card = Card(
        title[1] if title else place,
        metrics=config.get("metrics") or {},
        data=config.get("data") or {},
        licence=licence or str(facts.get("license", Card.licence)),
    )
    facts = front_matter(card, config) | facts | {"license": card.licence}
    section = "\n".join(licence_section(card.licence, card.data)) + "\n\n"
    if _SECTION.search(body) is None:
        at = _LIMITS.search(body)
        first = body if at is None else body[: at.start()]
        body = first.rstrip("\n") + "\n\n" + section + body[len(first) :]
    elif licence is not None:
        body = _SECTION.sub(lambda _: section, body, count=1)
    return join_card(facts, body.replace(PLACE, place).rstrip("\n") + "\n")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = Arguments(
        prog="python -m mentor.publish",
        description="Send a release folder to the Hugging Face Hub, with its card. The token is that of HF_TOKEN or of "
        "`hf auth login`.",
        epilog="Example: python -m mentor.publish runs/demo/2/release me/shapes --licence cc-by-4.0",
    )
    add = parser.add_argument
    add("folder", type=Path, help="release folder of a generator, an image tokenizer or an adapter")
    add("name", metavar="OWNER/NAME", help="on the hub; made where there is none")
    add("--private", action="store_true", help="make a repository that others do not see")
    add("--revision", metavar="BRANCH", help="branch, made where there is none (default: main)")
    add("--licence", metavar="ID", help="of the weights, such as cc-by-4.0 (default: what the card says)")
    add("--message", metavar="TEXT", help="of the commit (default: kind and fingerprint)")
    add("--dry-run", action="store_true", help="check, say what would be sent, and end")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: check, send, say where it is."""
    options = parse_arguments(arguments)
    parcel = pack_up(options.folder, options.name, options.revision, options.licence)
    for name in parcel.files:
        print(f"{parcel.size(name):>14,}  {name}")
    for name in parcel.left_out:
        print(f"{'left out':>14}  {name}")
    if options.dry_run:
        print(f"nothing was sent to {options.name} (--dry-run)")
        return
    print(_send(parcel, options.name, options.private, options.revision, None, options.message))


def _send(
    parcel: Parcel, repo_id: str, private: bool, revision: str | None, token: str | None, message: str | None
) -> str:
    instead = {CARD: parcel.card}
    return upload(parcel.folder, repo_id, private, revision, token, message or parcel.message, instead)


if __name__ == "__main__":
    run_main(main)
