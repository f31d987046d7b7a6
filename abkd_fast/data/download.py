"""Fetch one file over HTTPS: pinned size and SHA-256, resumable, atomic, safe among processes."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from abkd_fast._storage import write_atomically
from abkd_fast._version import __version__
from abkd_fast.data.errors import DataError

_CHUNK = 1 << 16
_LOCAL = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class RemoteFile:
    """A file at ``url`` whose content is fixed by ``size`` and, where it is known, ``sha256``."""

    url: str
    size: int
    sha256: str | None


def cache_dir() -> Path:
    """Where downloads go: ``$XDG_CACHE_HOME/abkd_fast``, by default ``~/.cache/abkd_fast``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "abkd_fast"


def fetch(remote: RemoteFile, target: Path, *, timeout: float = 30.0) -> Path:
    """Make ``target`` hold the remote file; return at once if it already does.

    The content goes to ``target`` + ``.part`` and is renamed when its checksum is right, so
    ``target`` is never half a file. An interrupted transfer is resumed by the next call.

    Args:
        remote: what to fetch. ``http://`` is accepted for this machine only.
        target: the file to make; its folder is created.
        timeout: seconds without an answer before giving up.

    Raises:
        DataError: names the file, the cause (HTTP status, no network, wrong checksum) and the fix.
    """
    _check_url(remote.url)
    if _matches(target, remote):
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as file, _locked(file):
            if not _matches(target, remote):  # else another process has just finished it
                _transfer(remote, file, target, timeout)
                os.replace(part, target)
    except urllib.error.HTTPError as error:
        raise DataError(_failure(remote, target, f"HTTP {error.code} {error.reason}")) from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        raise DataError(_failure(remote, target, f"{cause}")) from error
    return target


def fetch_recorded(url: str, target: Path, *, timeout: float = 30.0) -> Path:
    """Fetch a file whose publisher states no checksum; return at once if it is there unharmed.

    Size and SHA-256 of the first complete download are recorded in ``target`` + ``.json`` and hold
    from then on: a file that no longer matches is fetched again and must match the record. Asks
    nothing, whatever the size; resumes like :func:`fetch`.

    Args:
        url: HTTPS, or HTTP on this machine.
        target: the file to make; its folder is created.
        timeout: seconds without an answer before giving up.

    Raises:
        DataError: names the file, the cause and the fix.
    """
    record = target.with_name(target.name + ".json")
    if record.is_file():
        try:
            facts = json.loads(record.read_text(encoding="utf-8"))
            known = RemoteFile(url, int(facts["bytes"]), str(facts["sha256"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{record}: not a record of a download: {error}; delete it") from error
        return fetch(known, target, timeout=timeout)
    _check_url(url)
    fetch(RemoteFile(url, _remote_size(url, target, timeout), None), target, timeout=timeout)
    with target.open("rb") as file:
        facts = {"url": url, "bytes": target.stat().st_size, "sha256": _sha256(file)}
    write_atomically(record, lambda path: path.write_text(json.dumps(facts, indent=1)))
    return target


def _remote_size(url: str, target: Path, timeout: float) -> int:
    request = urllib.request.Request(
        url, headers={"User-Agent": f"abkd_fast/{__version__}"}, method="HEAD"
    )
    unknown = RemoteFile(url, 0, None)
    try:
        with urllib.request.build_opener(_Redirects()).open(request, timeout=timeout) as answer:
            length = answer.headers.get("Content-Length", "")
    except urllib.error.HTTPError as error:
        raise DataError(_failure(unknown, target, f"HTTP {error.code} {error.reason}")) from error
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", None) or error
        raise DataError(_failure(unknown, target, f"{cause}")) from error
    if not length.isdecimal():
        raise DataError(_failure(unknown, target, "the server does not say the file's size"))
    return int(length)


def _transfer(remote: RemoteFile, file: IO[bytes], target: Path, timeout: float) -> None:
    """Append to ``file`` what is missing, then verify all of it."""
    have = file.seek(0, os.SEEK_END)
    if have > remote.size:
        have = file.truncate(0)
    if have < remote.size:
        request = urllib.request.Request(
            remote.url, headers={"User-Agent": f"abkd_fast/{__version__}"}
        )
        if have:
            request.add_header("Range", f"bytes={have}-")
        opener = urllib.request.build_opener(_Redirects())
        with opener.open(request, timeout=timeout) as answer:
            # 200 instead of 206 = the server ignored the range and starts from the beginning
            if have and answer.status != http.client.PARTIAL_CONTENT:
                have = file.truncate(0)
            offered = answer.headers.get("Content-Length", "")
            if offered.isdecimal() and have + int(offered) != remote.size:
                reason = f"the server offers {have + int(offered)} bytes, expected {remote.size}"
                raise DataError(_failure(remote, target, reason))
            with _progress(target.name, remote.size, have) as advance:
                have += _copy(answer, file, remote.size - have, advance)
    if have < remote.size:
        reason = f"the transfer stopped at {have} of {remote.size} bytes; run again to resume"
        raise DataError(_failure(remote, target, reason))
    file.seek(0)
    found = _sha256(file)
    if remote.sha256 is not None and found != remote.sha256:
        file.truncate(0)
        raise DataError(
            _failure(remote, target, f"sha256 must be {remote.sha256}, got {found} (discarded)")
        )
    file.flush()
    os.fsync(file.fileno())


def _copy(answer: IO[bytes], file: IO[bytes], limit: int, advance: Callable[[int], Any]) -> int:
    """Copy at most ``limit`` bytes; return how many came before the end or a broken connection."""
    done = 0
    while done < limit:
        try:
            chunk = answer.read(min(_CHUNK, limit - done))
        except (OSError, http.client.HTTPException):
            break  # what has come is kept for the next call
        if not chunk:
            break
        file.write(chunk)
        done += len(chunk)
        advance(len(chunk))
    return done


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to HTTPS only."""

    def redirect_request(  # noqa: D102
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOCAL):
        return
    raise DataError(f"{url}: downloads must use https://, got {parts.scheme or 'no scheme'!r}")


def _matches(path: Path, remote: RemoteFile) -> bool:
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    with path.open("rb") as file:
        return remote.sha256 is None or _sha256(file) == remote.sha256


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _failure(remote: RemoteFile, target: Path, cause: str) -> str:
    return (
        f"cannot download {target.name} from {remote.url}: {cause}. Without a network, put the "
        f"file into DIR/{target.parent.name}/ and pass --root DIR (root=DIR in Python) or set "
        "ABKD_DATA=DIR"
    )


@contextlib.contextmanager
def _locked(file: IO[bytes]) -> Iterator[None]:
    """One process at a time writes a file; the lock falls with the process."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: the checksum still catches two writers
        yield
        return
    fcntl.flock(file.fileno(), fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _progress(name: str, size: int, have: int) -> Iterator[Callable[[int], Any]]:
    """A bar on stderr where that is a terminal; yields the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=size, completed=have)
        yield lambda count: progress.advance(task, count)
