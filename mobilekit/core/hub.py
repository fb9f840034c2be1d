"""A repository on the hub by name, and what the hub answers put into two lines."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilekit.core import console
from mobilekit.core.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

SCHEME = "hf://"
_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?P<id>{_NAME}/{_NAME})(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Repo:
    """A model repository, at a branch, tag or commit where one is named."""

    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def parse_repo(text: str) -> Repo:
    """Return the repository that ``owner/name[@revision]`` or ``hf://…`` names.

    Raises:
        UsageError: If it names none.
    """
    found = _REPO.fullmatch(text.removeprefix(SCHEME))
    if found is None or ".." in found["id"] or "--" in found["id"]:
        raise UsageError(
            f"'{text}' is not a repository of the hub",
            hint="Give owner/name, and a revision where you want one: owner/name@v1.",
        )
    return Repo(found["id"], found["revision"])


def connect(endpoint: str | None, token: str | None) -> HfApi:
    """Return the hub's client; its bars only where a person watches.

    Args:
        endpoint: Address of the hub; ``HF_ENDPOINT``, or the public one, where ``None``.
        token: Access token; the one that is logged in where ``None``.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not console.is_interactive():
        disable_progress_bars()
    return HfApi(endpoint=endpoint, token=token, library_name="mobilekit")


def require_token(api: HfApi) -> None:
    """Refuse to go on without an access token.

    Raises:
        UsageError: If none is given, set or logged in.
    """
    from huggingface_hub import get_token

    if not (api.token or get_token()):
        raise UsageError(
            "no access token of the hub is set, and pushing needs one that may write",
            hint="Log in with `hf auth login`, or set HF_TOKEN.",
        )


@contextlib.contextmanager
def hub_errors(repo: Repo, endpoint: str) -> Iterator[None]:
    """Turn what the hub's client raises into two-line errors."""
    import httpx2  # the client's own transport, which its errors come from
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{repo.id} is gated: access has to be granted first",
            hint=f"Ask for it at {endpoint}/{repo.id}, and log in with that account.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"there is no repository {repo.id} at {endpoint}, or it is private",
            hint="Check the name; for a private one log in with `hf auth login`.",
        ) from error
    except (errors.RevisionNotFoundError, errors.RevisionResolutionError) as error:
        raise UsageError(
            f"{repo.id} has no revision '{repo.revision or 'main'}'",
            hint="Name a branch, a tag or a commit after the @.",
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(repo, error) from error
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise MissingDependencyError(
            f"the hub cannot be reached at {endpoint} ({_line(error)})",
            hint="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then try again.",
        ) from error


def _refusal(repo: Repo, error: HfHubHTTPError) -> UsageError:
    status = error.response.status_code
    if status in (401, 403):
        return UsageError(
            f"the hub refuses access to {repo.id} (status {status})",
            hint="Log in with a token that may write there: `hf auth login`, or set HF_TOKEN.",
        )
    return UsageError(
        f"the hub refused the request for {repo.id} (status {status}): {_line(error)}",
        hint="Read its message; where it is the hub's trouble, try again later.",
    )


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:160]
