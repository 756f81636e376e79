"""Dictionaries on the hub: fetching the files of one, and nothing else of its repository; sending one with its card.

All requests go through the hub client, to ``HF_ENDPOINT``, with its cache and its login. Without a network, what is in
the cache is read.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from saeworks.dictionaries.formats.format import Format
from saeworks.dictionaries.formats.reading import check_name
from saeworks.dictionaries.formats.releases import Place
from saeworks.errors import InputError, RunError
from saeworks.models.hub import offline_unless_reachable, quiet_hub_client

# Folders below a dictionary's own that a format may keep its weights in.
_INNER = "checkpoints"


def fetch(place: Place, formats: Sequence[Format]) -> tuple[Path, dict[str, Any]]:
    """Download one dictionary into the hub's cache: the files that its format needs, all of one commit.

    Returns:
        Its folder (or file) on disk, and where it came from: ``{"repo", "revision", "path"}``.

    Raises:
        InputError: the hub cannot be reached and the cache has no copy, the repository, revision or path does not
            exist or may not be read, or there is no dictionary of a known format.
    """
    if place.path:
        check_name(place.path, place.repo)
    with offline_unless_reachable(), quiet_hub_client(), _sentences(place):
        from huggingface_hub import constants

        root, commit = _cached(place) if constants.HF_HUB_OFFLINE else _downloaded(place, formats)
    if "*" in place.path:
        present = [str(item.relative_to(root)) for item in root.glob(place.path)]
        place = Place(place.repo, _nearest(place, present), place.revision, None, place.hints)
    return root / place.path, {"repo": place.repo, "revision": commit, "path": place.path}


def fetch_card(place: Place) -> str | None:
    """The text of the card in the dictionary's folder, or of its repository; None when there is neither."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    folder = "" if "*" in place.path else place.path
    with offline_unless_reachable(), quiet_hub_client(), _sentences(place):
        for name in dict.fromkeys((f"{folder}/README.md".lstrip("/"), "README.md")):
            try:
                local = hf_hub_download(place.repo, name, revision=place.revision)
            except EntryNotFoundError:  # also what the cache says of a file it does not have
                continue
            return Path(local).read_text(encoding="utf-8", errors="replace")
    return None


def upload(folder: Path, place: Place, private: bool, message: str) -> str:
    """Send all files of ``folder`` to ``place`` in one commit, making the repository if need be; the commit's address.

    Raises:
        InputError: no login, no right to write, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    with offline_unless_reachable(), quiet_hub_client(), _sentences(place):
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"'{place.repo}' cannot be written: the hub at {constants.ENDPOINT} does not answer.")
        api = HfApi()
        api.create_repo(place.repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=place.repo,
            folder_path=folder,
            path_in_repo=place.path or None,
            revision=place.revision,
            commit_message=message,
        )
    return str(done.commit_url)


def _cached(place: Place) -> tuple[Path, str]:
    """Root of the newest copy in the cache that has the path, and its commit. Nothing is asked of the hub.

    What is there is what was fetched before, not the whole repository, so the client's own look-up would not do.
    """
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{place.repo.replace('/', '--')}"
    copies = [copy for copy in (repository / "snapshots").glob("*") if any(copy.glob(place.path or "*"))]
    if place.revision is not None:
        named = repository / "refs" / place.revision
        wanted = named.read_text().strip() if named.is_file() else place.revision
        copies = [copy for copy in copies if copy.name.startswith(wanted)]
    if not copies:
        raise InputError(
            f"'{_name(place)}' does not exist here, and the hub cannot be reached, nor has its cache a copy; "
            "give a local path, or try again online."
        )
    newest = max(copies, key=lambda copy: copy.stat().st_mtime_ns)
    return newest, newest.name


def _downloaded(place: Place, formats: Sequence[Format]) -> tuple[Path, str]:
    """Root of the copy that was downloaded, and its commit."""
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    commit = str(api.repo_info(place.repo, revision=place.revision).sha)
    path = place.path
    if "*" in path:
        path = _nearest(place, _listing(api, place.repo, commit, _parent(path))[1])
    files = _wanted(api, place, path, commit, formats)
    root: Path | None = None
    for name in files:
        check_name(name, place.repo)
        local = Path(hf_hub_download(place.repo, name, revision=commit))
        root = Path(*local.parts[: len(local.parts) - len(PurePosixPath(name).parts)])
    assert root is not None
    return root, commit


def _wanted(api: Any, place: Place, path: str, commit: str, formats: Sequence[Format]) -> list[str]:
    """Names of the files to download for the dictionary at ``path``."""
    single = PurePosixPath(path).suffix in (".pt", ".npz", ".safetensors")
    folder = _parent(path) if single else path
    files, folders = _listing(api, place.repo, commit, folder)
    if single:
        return _beside(api, place, path, files, commit, formats)
    inner = f"{folder}/{_INNER}".strip("/")
    if inner in folders:
        files = [*files, *_listing(api, place.repo, commit, inner)[0]]
    below = [name[len(folder) :].strip("/") for name in files]
    fitting = [f for f in formats if all(_matching(below, pattern) for pattern in f.needs)]
    if not fitting:
        shown = ", ".join([*below, *folders][:6]) or "nothing"
        raise InputError(
            f"'{_name(place)}' holds no dictionary of a known format, but {shown}; name the folder of one dictionary."
        )
    # Several formats may fit by their names; only those count that would read the same file of weights.
    weights = _matching(below, fitting[0].needs[-1])
    same = [f for f in fitting if _matching(below, f.needs[-1]) == weights]
    chosen = [name for f in same for pattern in (*f.needs, *f.also) if (name := _matching(below, pattern))]
    return list(dict.fromkeys(f"{folder}/{name}".strip("/") for name in chosen))


def _beside(
    api: Any, place: Place, path: str, files: Sequence[str], commit: str, formats: Sequence[Format]
) -> list[str]:
    """One file of weights, the settings beside it, and those of a training whose checkpoint it is."""
    if path not in files:
        raise InputError(f"'{place.repo}' has no file '{path}'; look at its list of files.")
    settings = {name for f in formats for name in (*f.needs, *f.also) if name.endswith(".json")}
    chosen = [path, *(name for name in files if PurePosixPath(name).name in settings)]
    if PurePosixPath(_parent(path)).name == _INNER:
        above = _listing(api, place.repo, commit, _parent(_parent(path)))[0]
        chosen += [name for name in above if PurePosixPath(name).name in settings]
    return chosen


def _parent(path: str) -> str:
    parent = str(PurePosixPath(path).parent)
    return "" if parent == "." else parent


def _listing(api: Any, repo: str, commit: str, folder: str) -> tuple[list[str], list[str]]:
    """Files and folders directly in ``folder``."""
    from huggingface_hub.hf_api import RepoFile

    items = list(api.list_repo_tree(repo, folder or None, revision=commit))
    files = [str(item.path) for item in items if isinstance(item, RepoFile)]
    return files, [str(item.path) for item in items if not isinstance(item, RepoFile)]


def _matching(names: Sequence[str], pattern: str) -> str | None:
    """The first name, in order, that the pattern fits; ``*`` stays within one folder."""
    depth = pattern.count("/")
    return next((name for name in sorted(names) if name.count("/") == depth and fnmatch(name, pattern)), None)


def _nearest(place: Place, folders: Sequence[str]) -> str:
    """The folder whose number where the path has its ``*`` is nearest to what the release asks for."""
    start, _, end = place.path.partition("*")
    numbers: dict[float, str] = {}
    for folder in folders:
        found = re.fullmatch(re.escape(start) + r"(\d+(?:\.\d+)?)" + re.escape(end), folder)
        if found:
            numbers[float(found[1])] = folder
    if not numbers:
        raise InputError(f"'{place.repo}' has no folder '{place.path}'; look at its list of files.")
    return numbers[min(numbers, key=lambda number: abs(number - (place.nearest or 0.0)))]


def _name(place: Place) -> str:
    revision = f"@{place.revision}" if place.revision else ""
    return f"{place.repo}{revision}/{place.path}".rstrip("/")


@contextmanager
def _sentences(place: Place) -> Generator[None]:
    """What the hub client raises, as one sentence."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore

    name = _name(place)
    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as e:
        raise InputError(
            f"'{place.repo}' is gated: accept its terms on the hub and log in with 'hf auth login'."
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise InputError(
            f"'{name}' does not exist, neither here nor on the hub (private repositories need 'hf auth login')."
        ) from e
    except errors.RevisionNotFoundError as e:
        raise InputError(f"'{place.repo}' has no revision '{place.revision}'; look at its branches.") from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as e:
        raise InputError(
            f"'{name}' does not exist here, and the hub cannot be reached; give a local path, or try again online."
        ) from e
    except errors.EntryNotFoundError as e:
        raise InputError(f"'{place.repo}' has no '{place.path}'; look at its list of files.") from e
    except errors.HfHubHTTPError as e:
        status = getattr(e.response, "status_code", None)
        if status in (401, 403):
            raise InputError(f"The hub refuses '{name}' ({status}); log in with 'hf auth login'.") from e
        raise RunError(f"The hub answered {status} for '{name}'; try again later.") from e
    except errors.LocalTokenNotFoundError as e:
        raise InputError(f"'{name}' needs a login; run 'hf auth login'.") from e
    except HTTPError as e:
        raise RunError(f"The connection to the hub broke off at '{name}' ({type(e).__name__}); try again.") from e
    except errors.HFValidationError as e:
        raise InputError(f"'{name}' does not exist here and is no name of a repository; check the path.") from e
