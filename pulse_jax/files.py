"""Files that are written whole, folders that one run keeps, and errors told in one line."""

import contextlib
import difflib
import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def write(path: str | Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes so that the file is there whole or not at all.

    It is written under another name in the same folder, then moved into place. If that fails, this
    raises OSError, and the file that was there before stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")  # names of files need not be UTF-8
    try:
        temporary.write_bytes(content)
        with temporary.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        os.replace(temporary, path)
    except OSError as error:  # of a full disk, say, whose error names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)  # there no longer, if all went well


def check_free(folder: Path, needed: int) -> None:
    """Raises OSError if the disk of a folder, which needn't be there yet, has fewer bytes free.

    It goes before what would end in something else than one line on a full disk.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        told = f"up to {needed / 1e6:.3g} MB are needed, and {free / 1e6:.3g} MB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {told}", str(folder))


def expanded(path: str | Path, flag: str = "") -> Path:
    """A path with the home of the user in place of `~`, or of another in place of `~name`.

    What begins so and is there is taken as it is. Raises ValueError if no such home is known, which
    names the `flag` or setting that gives the path, if one does.
    """
    found = Path(os.path.expanduser(path))
    first = "".join(found.parts[:1])
    if first.startswith("~") and not os.path.lexists(first):
        given = f"{flag}={path}" if flag else path
        raise ValueError(f"{given}: no home is known for {first}")
    return found


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, and keep other runs out until the context ends or the process does.

    Raises ValueError if one is in it already. File systems without locks keep nobody out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as at_end:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
                at_end.callback(os.close, handle)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ValueError("another run is writing there") from error
        yield


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError if the file can't be read or holds no object."""
    try:
        return json_object(path)
    except ValueError as error:
        raise ValueError(f"{path}: can't be read: {error}") from error


def json_object(path: Path, largest: float = math.inf) -> dict[str, Any]:
    """As `read_json`, but a ValueError is the reason alone. A file above `largest` bytes is one."""
    try:
        if path.stat().st_size > largest:
            raise ValueError(f"longer than {largest} bytes")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # the last of brackets in brackets
        raise ValueError(one_line(error)[:300]) from error
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def file_digest(path: Path) -> str:
    """The SHA-256 of a file. Raises ValueError if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {one_line(error)}") from error


def load_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by their names. Raises ValueError if it can't be read."""
    try:
        with open(path, "rb") as stream:
            if stream.read(2) != b"PK":
                raise ValueError("not an .npz file")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return dict(file)
    except Exception as error:  # on a damaged file, NumPy raises whatever it stumbles over
        raise ValueError(f"{path}: can't be read: {one_line(error)}") from error


def npz(arrays: Mapping[str, Any]) -> bytes:
    """The content of an .npz file with these arrays, each of its `kept_dtype`."""
    content, kept = io.BytesIO(), dict[str, Any]()
    for name, array in arrays.items():
        array = np.asarray(array)
        kept[name] = array.astype(kept_dtype(array.dtype), copy=False)
    np.savez(content, **kept)
    return content.getvalue()


def kept_dtype(dtype: Any) -> np.dtype[Any]:
    """The type of numbers in a file. Those that NumPy lacks, as bfloat16, are float32 there."""
    known = np.dtype(dtype)
    return np.dtype(np.float32) if known.kind == "V" else known


def attempt(function: Callable[..., Any], *arguments: Any) -> str:
    """Call it. If it can't read or write a file, log and return why, in one line."""
    try:
        function(*arguments)
        return ""
    except ValueError as error:
        complaint = one_line(error)
    except OSError as error:
        complaint = one_line(f"{error.filename2 or error.filename}: {one_line(error)}")
    logging.getLogger("pulse_jax").error(complaint)
    return complaint


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How settings differ from those of earlier results, in words, or nothing."""
    for name, value in now.items():
        if name not in earlier:
            return f"an older version, which didn't note {name}"
        if earlier[name] != value:
            return f"other settings: {name} was {earlier[name]}, not {value}"
    return ""


def one_line(told: object) -> str:
    """An exception's message, or any text, on one line. Without a message, the exception's type.

    For an OSError, it is the reason alone, such as "No such file or directory". The caller names
    the file, since the error might name a temporary one. Characters that can't be printed, as in
    the name of a file, become escapes.
    """
    try:
        message = getattr(told, "strerror", None) or str(told)
    except Exception:  # of a class whose __str__ fails
        message = ""
    line = " ".join(message.split()) or type(told).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def counted(number: int, noun: str) -> str:
    """A number of things in words: "1 picture", "4 pictures"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def figure(value: float | str) -> str:
    """A measured number as people read it: whole, or with three digits, as 0.00132 and 0.0000993.

    Below a millionth it is 9.93e-07.
    """
    number = float(value)
    if number.is_integer():
        return f"{int(number)}"
    if 1e-6 <= abs(number) < 1e-4:  # of which Python would write 9.93e-05
        return np.format_float_positional(number, 3, unique=False, fractional=False)
    return f"{number:#.3g}"


def near(name: str, names: Iterable[str]) -> str:
    """A question about those of `names` that are like `name`: "; did you mean …?", or nothing."""
    found = difflib.get_close_matches(name.lower(), list(names), n=5)
    return f"; did you mean {' or '.join(found)}?" if found else ""
