"""Releases on the Hugging Face Hub: fetched into its cache, sent there from a folder; plain files only, never code."""

import contextlib
import errno
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mentor.errors import UserError
from mentor.releases import PICKLED, RELEASE_FILES, WEIGHTS, check_release, read_description, release_files

# Seconds until a hub that does not answer counts as out of reach.
PATIENCE = 10

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_PLACE = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9_][A-Za-z0-9_./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = "set HF_TOKEN, or log in with `hf auth login`"


def fetch(
    place: str | Path, revision: str | None = None, cache_dir: str | Path | None = None, token: str | None = None
) -> Path:
    """The folder of a release: `place` itself where it is one, else that of the hub's cache, filled where it must be.

    What is named by its commit and whole in the cache is taken from there without a word to the hub. So is everything
    with HF_HUB_OFFLINE=1, and what a hub out of reach cannot tell about.

    Args:
        place: a folder; or OWNER/NAME on the hub, or OWNER/NAME@REVISION.
        revision: branch, tag or commit on the hub; None is its main branch.
        cache_dir: where fetched releases are kept; None is the hub's own cache (HF_HUB_CACHE).
        token: for private and gated repositories; None is the one of HF_TOKEN or of `hf auth login`.

    Raises:
        UserError: it is neither folder nor name, the hub does not have it or does not give it, it is no release of
            ours or has pickled weights only, a file is not whole, or there is no room for it.
    """
    folder = Path(place)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{place} is a folder, and folders have no revisions: leave revision {revision} out")
        return folder
    name, given = _read_place(place)
    if given is not None and revision not in (None, given):
        raise UserError(f"{place} names revision {given}, and revision {revision} is asked for: give one of them")
    wanted = _Wanted(name, revision or given, None if cache_dir is None else Path(cache_dir), token)
    with _silence():
        fetched = wanted.fetch()
    wanted.check(fetched)
    return fetched


def is_hub_name(place: str | Path) -> bool:
    """Whether `place` is not a folder but can be a name on the hub: OWNER/NAME, or OWNER/NAME@REVISION."""
    return not Path(place).is_dir() and _match(place) is not None


def check_name(repo_id: str) -> None:
    """Nothing, where a repository on the hub can be called so.

    Raises:
        UserError: it cannot.
    """
    match = _match(repo_id)
    if match is None or match[2]:
        raise UserError(f"{repo_id} cannot be a name on the hub: give OWNER/NAME in letters, digits, '-', '_' and '.'")


def spelled(folder: Path) -> str:
    """What loads a fetched release again, anywhere: its path, or OWNER/NAME@COMMIT where the hub's cache holds it."""
    parts = folder.parts[-3:]
    if len(parts) == 3 and parts[0].startswith("models--") and parts[1] == "snapshots" and _COMMIT.fullmatch(parts[2]):
        return f"{'/'.join(parts[0].split('--')[1:])}@{parts[2]}"
    return str(folder)


def upload(
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "A release of mentor",
    instead: Mapping[str, bytes] | None = None,
) -> str:
    """The address at which the files of a release folder now are; the repository is made where there is none.

    All files arrive in one commit: whoever loads meanwhile gets the earlier release or this one.

    Args:
        folder: the release folder; nothing in it is changed.
        repo_id: OWNER/NAME.
        private: make a repository that only those see whom its owner lets.
        revision: a branch, made where there is none; None is the main one.
        token: one that may write; None is the one of HF_TOKEN or of `hf auth login`.
        message: of the commit.
        instead: name -> content, of files that go there other than they are in the folder.

    Raises:
        UserError: there is no token or it may not write, the name cannot be, a private repository was asked for and it
            is public, or the hub is out of reach.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    check_name(repo_id)
    if _offline():
        raise UserError(f"HF_HUB_OFFLINE=1 keeps {repo_id} from being sent to the hub: unset it")
    if (token := token or get_token()) is None:
        raise UserError(f"no token to write {repo_id} on the hub with: {_TOKEN}")
    instead = instead or {}
    api = HfApi(token=token)
    sent = [CommitOperationAdd(name, instead.get(name, folder / name)) for name in release_files(folder)[0]]
    try:
        with _silence():
            _make_repository(api, repo_id, private)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            api.create_commit(repo_id, sent, commit_message=message, revision=revision)
    except UserError:
        raise
    except Exception as error:  # the library raises its own errors, its HTTP client's, OSError, ValueError and others
        raise _not_sent(repo_id, error) from error
    return f"{api.endpoint}/{repo_id}" + ("" if revision is None else f"/tree/{revision}")


@dataclass(frozen=True)
class _Wanted:
    """A release that is asked for, see `fetch`."""

    name: str
    revision: str | None
    cache_dir: Path | None
    token: str | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def fetch(self) -> Path:
        """The folder in the cache.

        Raises:
            UserError: it cannot be had.
        """
        # A commit never changes.
        if (_offline() or _COMMIT.fullmatch(self.revision or "")) and (found := self._find()):
            return found
        if _offline():
            raise UserError(
                f"there is no folder {self}, and {self.name} of the hub is not in the cache, or not all of it, while "
                "HF_HUB_OFFLINE=1 forbids to fetch it: load it once without, or give the release folder of a run"
            )
        from huggingface_hub import HfApi, hf_hub_download, snapshot_download

        where: Any = {"cache_dir": self.cache_dir, "token": self.token}
        try:
            about = HfApi(token=self.token).model_info(self.name, revision=self.revision, timeout=PATIENCE)
        except Exception as error:  # the library raises its own errors, those of its HTTP client, and ValueError
            if _is_answer(error) or (found := self._find()) is None:
                raise self._refusal(error) from error
            print(f"the hub is out of reach ({_reason(error)}): {spelled(found)} is from the cache", file=sys.stderr)
            return found
        self._check_files([sibling.rfilename for sibling in about.siblings or ()])
        try:
            # This also notes which commit the revision is at the moment, for those who come without a network.
            config = Path(hf_hub_download(self.name, "config.json", revision=self.revision, **where))
            self._check_ours(config.parent)
            commit = config.parent.name
            return Path(snapshot_download(self.name, revision=commit, allow_patterns=RELEASE_FILES, **where))
        except UserError:
            raise
        except Exception as error:  # likewise, and OSError
            raise self._refusal(error) from error

    def check(self, folder: Path) -> None:
        """Nothing, where the folder in the cache holds a whole release.

        Raises:
            UserError: it does not.
        """
        self._check_ours(folder)
        try:
            check_release(folder)
        except UserError as error:
            raise UserError(
                f"{self} is damaged ({error}): delete {folder.parent.parent} and load it again; if that does not help, "
                "it is so on the hub, and its owner has to push it again"
            ) from error

    def _find(self) -> Path | None:
        """The folder in the cache if all is there; nobody is asked."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        where: Any = {"revision": self.revision, "cache_dir": self.cache_dir}
        try:
            found = snapshot_download(self.name, allow_patterns=RELEASE_FILES, local_files_only=True, **where)
        except LocalEntryNotFoundError:
            return None
        return Path(found)

    def _check_ours(self, folder: Path) -> None:
        """Nothing, where the folder's config.json is one of ours.

        Raises:
            UserError: it is not.
        """
        try:
            read_description(folder)
        except UserError as error:
            raise UserError(f"{self} on the hub is no release of mentor: {error}") from error

    def _check_files(self, files: list[str]) -> None:
        """Nothing, where these can be the files of a release.

        Raises:
            UserError: they cannot.
        """
        pickled = [file for file in files if file.endswith(PICKLED)]
        if pickled and WEIGHTS not in files:
            raise UserError(
                f"{self} on the hub has pickled weights ({pickled[0]}), which could run code and are never loaded, "
                "and no safetensors: ask its owner for these"
            )
        for file in ("config.json", WEIGHTS):
            if file not in files:
                raise UserError(f"{self} on the hub is no release of mentor: there is no {file} in it")

    def _refusal(self, error: Exception) -> UserError:
        """What is said of an error of the library."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        status = _status(error)
        if isinstance(error, GatedRepoError):
            return UserError(
                f"{self} is gated on the hub: ask for access on its page, then give a token that has it ({_TOKEN})"
            )
        if isinstance(error, RevisionNotFoundError):
            return UserError(
                f"the hub has {self.name}, but no revision {self.revision} of it: give a branch, a tag or a commit"
            )
        if status == 401 and self._has_token():
            return UserError(f"the hub does not accept the token that {self} was asked for with: {_TOKEN}")
        if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
            return UserError(
                f"there is no folder {self}, and no repository {self.name} on the hub, or it is private: check the "
                f"name, or give a token that may read it ({_TOKEN})"
            )
        if status == 403:
            return UserError(f"the hub does not let this token read {self} ({_reason(error)}): give another ({_TOKEN})")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return UserError(f"no room is left for {self} ({error.strerror}): make some, or say another cache_dir")
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            return UserError(f"{self} cannot be kept in {error.filename} ({error.strerror}): say another cache_dir")
        return UserError(
            f"{self} cannot be fetched from the hub ({_reason(error)}), and is not in the cache: try again, or give "
            "the release folder of a run"
        )

    def _has_token(self) -> bool:
        from huggingface_hub import get_token

        return (self.token or get_token()) is not None


def _read_place(place: str | Path) -> tuple[str, str | None]:
    """Name and revision of a place on the hub.

    Raises:
        UserError: it cannot be one.
    """
    match = _match(place)
    if match is None:
        raise UserError(
            f"{place} is not a release folder, nor a name on the hub (OWNER/NAME): give the `release` folder that "
            "training writes into its run folder, or such a name"
        )
    return match[1], match[2]


def _match(place: str | Path) -> re.Match[str] | None:
    match = _PLACE.fullmatch(str(place))
    return None if match is None or "--" in match[1] or ".." in match[0] or match[1].endswith(".git") else match


def _make_repository(api: Any, repo_id: str, private: bool) -> None:
    """Have a repository on the hub.

    Raises:
        UserError: it shall be private, and is public.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(repo_id, timeout=PATIENCE)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return
    if private and not there.private:
        raise UserError(
            f"{repo_id} is public on the hub, so this would be too: make it private in its settings, leave --private "
            "out, or choose another name"
        )


def _not_sent(repo_id: str, error: Exception) -> UserError:
    """What is said of an error of the library in sending."""
    match _status(error):
        case 401:
            return UserError(f"the hub does not accept the token that {repo_id} was to be written with: {_TOKEN}")
        case 403:
            return UserError(
                f"the token may not write {repo_id} ({_reason(error)}): take one with the right to write there, or "
                "another name"
            )
        case 400:
            return UserError(f"the hub does not take {repo_id} ({_reason(error)}): change that and send it again")
        case _:
            return UserError(f"{repo_id} was not sent to the hub ({_reason(error)}): the same command tries again")


def _is_answer(error: Exception) -> bool:
    """Whether the hub itself has refused; it has not where it is out of reach, out of order or too busy."""
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in (408, 429)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error is about, or one of those that it came from."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response.status_code
        error = error.__cause__
    return None


def _reason(error: BaseException) -> str:
    """Why, on one line: the hub's own words where it said some, else those of the first error of all."""
    while (said := getattr(error, "server_message", None)) is None and error.__cause__ is not None:
        error = error.__cause__
    words = " ".join((said or str(error) or type(error).__name__).split())
    return words.split(" for url ")[0].rstrip(".")


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The library says nothing within, but for bars on a terminal: what its warnings tell becomes one line of ours."""
    from huggingface_hub import utils

    before, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(before)
        if bars:
            utils.enable_progress_bars()
