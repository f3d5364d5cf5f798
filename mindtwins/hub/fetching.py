"""Files of a model hub: found in the hub client's cache or downloaded by it, and then hashed.

Where the hub is, whether it may be asked, the proxy, the token and the cache are huggingface_hub's
own settings (HF_ENDPOINT, HF_HUB_OFFLINE, HTTPS_PROXY, HF_TOKEN, HF_HOME). Its client checks a
download's size alone, so a flipped bit passes it: what counts here is a file's hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mindtwins.console import tell
from mindtwins.errors import UserError

# The weights that the authors published, as timm keeps them; all are of ImageNet-1k.
PUBLISHED = {
    "pcpvt_small": "timm/twins_pcpvt_small.in1k",
    "pcpvt_base": "timm/twins_pcpvt_base.in1k",
    "pcpvt_large": "timm/twins_pcpvt_large.in1k",
    "svt_small": "timm/twins_svt_small.in1k",
    "svt_base": "timm/twins_svt_base.in1k",
    "svt_large": "timm/twins_svt_large.in1k",
}
# SHA-256 of their model.safetensors, as the hub's pages give them; those of the two others are not
# known. A mirror that serves another file with a matching announcement is found by them alone.
PINNED = {
    "timm/twins_svt_small.in1k": "46e4bd7b30ae9ae3f2e9ec4fb669439c5f9676c6bc787687923424d704a06c1a",
    "timm/twins_svt_large.in1k": "2fbe754f6e595bd07294f381302e0b3f1d449176977e35e4f30200fe4f3bcf97",
    "timm/twins_pcpvt_base.in1k": "5722f0d29662fd5ff69a21701caaf5feebd1d657adb62391a75798c43b37760f",  # noqa: E501
    "timm/twins_pcpvt_large.in1k": "423acdd738d41f7ed50bbafbfbf3e50f6ea098b5704bb749a969f1992ddd84c3",  # noqa: E501
}
WEIGHTS = "model.safetensors"

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# In front of a repo id where other libraries take it for a name of a model.
_SCHEMES = ("hf-hub:", "hf_hub:")


@dataclass(frozen=True)
class Repository:
    """A repository of models on the hub.

    Attributes:
        name: "owner/name".
        revision: a branch, a tag or a commit.
    """

    name: str
    revision: str = "main"

    @property
    def is_published(self) -> bool:
        """Whether it has weights of the authors', which no longer change."""
        return self.name in PUBLISHED.values() and self.revision == "main"

    def __str__(self) -> str:
        return self.name if self.revision == "main" else f"{self.name}@{self.revision}"


def parse_repository(text: str) -> Repository | None:
    """What `owner/name` or `owner/name@revision` means; None if it cannot be a repository."""
    for scheme in _SCHEMES:
        text = text.removeprefix(scheme)
    name, _, revision = text.partition("@")
    return Repository(name, revision or "main") if _REPO_ID.fullmatch(name) else None


def fetch(repository: Repository, file: str) -> Path | None:
    """A file of a repository, in the hub client's cache; None if the repository lacks it.

    Raises:
        UserError: it cannot be had, or is not what was announced.
    """
    path = fetch_unchecked(repository, file)
    if path is not None:
        check_announced(repository, path)
    return path


def fetch_unchecked(repository: Repository, file: str) -> Path | None:
    """As `fetch`, for who reads all bytes of the file and calls `check_announced` with their sum.

    The authors' weights are taken from the cache without a request; of others the hub is asked
    whether there are newer ones, and the cache stands in where it does not answer.

    Raises:
        UserError: it cannot be had.
    """
    hub = hub_client()
    path = _cached(hub, repository, file) if repository.is_published else None
    return path or _download(hub, repository, file)


def check_announced(repository: Repository, path: Path, sha256: str | None = None) -> None:
    """Compare a cached file with its name in the cache, the hash that the hub announced.

    Args:
        sha256: of its bytes, where they have been read already; None: they are read now.

    Raises:
        UserError: they differ. The file is removed, so that the next try downloads it anew.
    """
    blob = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        found = sha256 or sha256_of(blob)
    elif re.fullmatch("[0-9a-f]{40}", blob.name):  # of a small file: what git calls it
        data = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    else:  # a file system without links
        tell(
            f"{path.name} of {repository} is not compared with the hash that the hub announced,"
            f" which the cache at {path} does not keep"
        )
        return
    if found != blob.name:
        _remove(path)
        raise UserError(
            f"{path.name} of {repository} is damaged (its hash is {found}, announced was"
            f" {blob.name}): it was removed from the cache as far as that can be written, so try"
            " again"
        )


def check_pinned(repository: Repository, path: Path, sha256: str) -> bool:
    """Whether the sum of a repository's weights is known; it is theirs then.

    Raises:
        UserError: it is not.
    """
    pinned = PINNED.get(repository.name) if repository.is_published else None
    if pinned not in (None, sha256):
        _remove(path)
        raise UserError(
            f"{repository} from {hub_client().constants.ENDPOINT} is not what timm published (its"
            f" sha256 is {sha256}, not {pinned}), though it is what was announced there: it is not"
            " used; ask another mirror with HF_ENDPOINT, or name a file that you have"
        )
    return pinned is not None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def hub_client() -> ModuleType:
    """The package huggingface_hub.

    Raises:
        UserError: it is not installed.
    """
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            "published weights are fetched by huggingface_hub, which is not installed:"
            " pip install huggingface_hub (a file that you have needs no network and not this)"
        ) from error
    return huggingface_hub


def _cached(hub: ModuleType, repository: Repository, file: str) -> Path | None:
    """A file in the cache; None if it is not there."""
    found = hub.try_to_load_from_cache(repository.name, file, revision=repository.revision)
    return Path(found) if isinstance(found, str) else None


def _is_known_to_lack(hub: ModuleType, repository: Repository, file: str) -> bool:
    """Whether the cache knows that a repository does not have a file."""
    found = hub.try_to_load_from_cache(repository.name, file, revision=repository.revision)
    return found is not None and not isinstance(found, str)


def _download(hub: ModuleType, repository: Repository, file: str) -> Path | None:
    """What the hub's client makes of it, with its many errors in a sentence each."""
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    what = f"{file} of {repository}"
    try:
        return Path(hub.hf_hub_download(repository.name, file, revision=repository.revision))
    except errors.LocalEntryNotFoundError as error:
        if _is_known_to_lack(hub, repository, file):
            return None
        if hub.constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE forbids to ask for it"
        else:
            reason = f"{endpoint} could not be asked ({_cause(error)})"
        raise UserError(
            f"{what} is not in the cache {hub.constants.HF_HUB_CACHE}, and {reason}: set"
            " HF_ENDPOINT to a mirror, or name a file that you have"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} is open to those whom its owner lets in: ask on"
            f" {endpoint}/{repository.name}, and set HF_TOKEN to a token of yours"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repository.name} at {endpoint} has no revision {repository.revision}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no repository {repository.name} at {endpoint}, or it is private: check the"
            " name, or set HF_TOKEN to a token that may read it (a file needs its whole path)"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise UserError(f"cannot fetch {what}: {endpoint} answers {status}") from error
    except OSError as error:
        if error.errno is None:
            raise UserError(f"cannot fetch {what} from {endpoint}: {first_line(error)}") from error
        raise UserError(
            f"cannot keep {what} in {hub.constants.HF_HUB_CACHE}: {error.strerror}; HF_HOME names"
            " another place"
        ) from error
    # Whatever library carries the client's requests has errors of its own, which are of no common
    # kind; they change with its versions.
    except Exception as error:
        raise UserError(
            f"the download of {what} from {endpoint} broke off ({first_line(error)}): try again"
        ) from error


def _remove(path: Path) -> None:
    """Take a file out of the cache: its name, and the blob that it stands for."""
    with contextlib.suppress(OSError):
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)


def _cause(error: BaseException) -> str:
    """The first reason behind an error."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    return first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, up to the end of its first line."""
    lines = str(error).splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
