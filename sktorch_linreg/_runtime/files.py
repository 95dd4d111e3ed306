"""Nested state in one safetensors file, written atomically and read without running code."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

FORMAT, VERSION = "sktorch_linreg", 1
HEADER = ("format", "version", "kind", "tree", "sha256")
REMEDY = "Nothing was loaded. Restore the file from a copy, or save it again."
# what reading a damaged file can raise
DAMAGE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    MemoryError,
)  # fmt: skip


class NotStorable(ValueError):
    """A value that cannot be stored in a file; the message names it."""


# -- trees of plain values ------------------------------------------------------------------------


def flatten(value: Any, arrays: dict[str, np.ndarray[Any, Any]], path: str = "") -> Any:
    """A tree as JSON values, its arrays put into `arrays`; raises NotStorable for other values."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, np.str_):
        return str(value)
    if type(value) is float:
        return value if np.isfinite(value) else {"float": repr(value)}
    if type(value) is list:
        return [flatten(v, arrays, f"{path}[{i}]") for i, v in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [flatten(v, arrays, f"{path}[{i}]") for i, v in enumerate(value)]}
    if type(value) is dict and all(type(k) in (str, int) for k in value):
        return {"dict": [[k, flatten(v, arrays, f"{path}.{k}")] for k, v in value.items()]}
    if isinstance(value, np.random.RandomState):
        told = value.get_state(legacy=False)
        if told["bit_generator"] == "MT19937":
            state = told["state"]["key"], told["state"]["pos"], told["has_gauss"], told["gauss"]
            return {"random_state": flatten(("MT19937", *state), arrays, path)}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        return {"scalar": _add(np.array(value), arrays)}
    # joblib maps the arrays of a pickle into memory as np.memmap
    if type(value) in (np.ndarray, np.memmap):
        if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return {"array": _add(value, arrays)}
        if value.ndim == 1 and all(type(v) is str for v in value):
            return {"strings": list(value)}
    raise NotStorable(
        f"{path.lstrip('.') or 'The value'} is {value!r}, which cannot be stored: files hold only "
        "numbers, strings, and arrays and containers of these. Replace that value."
    )


def _add(array: np.ndarray[Any, Any], arrays: dict[str, np.ndarray[Any, Any]]) -> str:
    name = f"a{len(arrays)}"
    # safetensors requires C order and native byte order
    arrays[name] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return name


def unflatten(tree: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Inverse of `flatten`; the arrays used are removed from `arrays`."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, list):
        return [unflatten(v, arrays) for v in tree]
    if not isinstance(tree, dict) or len(tree) != 1:
        raise ValueError("the description of its contents is damaged")
    ((kind, value),) = tree.items()
    if kind not in _READERS:
        raise ValueError(f"it contains values of unknown kind {kind!r}")
    return _READERS[kind](value, arrays)


def _random_state(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> np.random.RandomState:
    kind, key, position, has_gauss, gauss = unflatten(value, arrays)
    # with an invalid position numpy would read beyond the key
    if key.shape != (624,) or key.dtype != np.uint32 or not 0 <= position <= 624:
        raise ValueError("it contains an invalid random state")
    out = np.random.RandomState(0)
    out.set_state((kind, key, position, int(has_gauss), float(gauss)))
    return out


_READERS: dict[str, Any] = {
    "float": lambda v, arrays: {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}[v],
    "tuple": lambda v, arrays: tuple(unflatten(item, arrays) for item in v),
    "dict": lambda v, arrays: {k: unflatten(item, arrays) for k, item in v},
    "array": lambda v, arrays: arrays.pop(v),
    "scalar": lambda v, arrays: arrays.pop(v)[()],
    "strings": lambda v, arrays: np.array([str(item) for item in v], dtype=object),
    "random_state": _random_state,
}

# -- files ----------------------------------------------------------------------------------------


def require_safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Model and checkpoint files require safetensors, which is not installed. Install it "
            "with: pip install 'sktorch_linreg[persist]'."
        ) from error
    return safetensors


def _digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """SHA-256 of the complete contents of a file."""
    total = hashlib.sha256()
    for name in HEADER[:-1]:
        total.update(f"{name}={header[name]}\n".encode())
    for name, a in sorted(arrays.items()):
        total.update(f"{name} {a.dtype.str} {a.shape}\n".encode())
        total.update(np.ascontiguousarray(a).data if a.size else b"")
    return total.hexdigest()


def write(path: str | os.PathLike[str], kind: str, content: Any) -> None:
    """Write a tree to a file atomically.

    Raises
    ------
    NotStorable
        For values other than numbers, strings, and arrays and containers of these.
    OSError
        If the file cannot be written; an existing file is then left unchanged.
    """
    library = require_safetensors()
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    tree = json.dumps(flatten(content, arrays), allow_nan=False)
    header = {"format": FORMAT, "version": str(VERSION), "kind": kind, "tree": tree}
    header["sha256"] = _digest(header, arrays)
    replace(path, library.numpy.save(arrays, header))


def replace(path: str | os.PathLike[str], data: bytes) -> None:
    """Atomically replace the contents of a file: write a temporary file, sync it, rename it.

    Symbolic links are followed, and a file that is replaced keeps its mode and its owner.

    Raises
    ------
    OSError
        If the file cannot be written, or if `path` exists and is not a regular file.
    """
    target = Path(os.path.realpath(path))
    found = None
    with suppress(FileNotFoundError):
        found = target.stat()
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise OSError(
            f"{str(path)!r} is not a regular file, so nothing was written there. Choose another "
            "path."
        )
    # a name of fixed length, since the file's own may already have the maximum length
    name = target.with_name(f".{uuid.uuid4().hex}.tmp")
    # a file that is not world-readable must never be readable by others in the meantime
    private = found is not None and not found.st_mode & stat.S_IROTH
    opener = partial(os.open, mode=0o600) if private else None
    try:
        # opened in the with statement itself, so that Ctrl-C cannot interrupt in between
        with open(name, "xb", opener=opener) as file:
            if found is not None:
                _take_over_permissions(name, found)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    # the rename is only durable once the folder is synced
    folder = None
    with suppress(OSError, AttributeError):
        try:
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
        finally:
            if folder is not None:
                os.close(folder)


def _take_over_permissions(name: Path, found: os.stat_result) -> None:
    """Give a new file the mode and, where permitted, the owner of the file it replaces."""
    mine = name.stat()
    if (mine.st_uid, mine.st_gid) != (found.st_uid, found.st_gid):
        with suppress(OSError, AttributeError):
            os.chown(name, found.st_uid, found.st_gid)
    os.chmod(name, stat.S_IMODE(found.st_mode))


def read(path: str | os.PathLike[str], kind: str, remedy: str = REMEDY) -> Any:
    """Read the tree of a file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a complete file of this kind; the message names it, what is wrong, and the
        remedy.
    """
    library = require_safetensors()
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        if not file.is_file():
            raise ValueError("it is not a regular file")
        try:
            with library.safe_open(file, framework="np") as opened:
                header = opened.metadata() or {}
                _check_header(header, kind)
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except library.SafetensorError as error:
            raise ValueError(f"it is not a complete safetensors file ({error})") from None
        if _digest(header, arrays) != header["sha256"]:
            raise ValueError("its contents do not match their checksum")
        content = unflatten(json.loads(header["tree"]), arrays)
        if arrays:
            raise ValueError("it contains unreferenced arrays")
    except DAMAGE as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a {kind} of sktorch_linreg: {error}. {remedy}"
        ) from error
    return content


def _check_header(header: Mapping[str, str], kind: str) -> None:
    if header.get("format") != FORMAT:
        raise ValueError(f"it was not written by {FORMAT}")
    version = header.get("version", "")
    if version != str(VERSION):
        raise ValueError(
            f"it has format version {version!r}, but this package reads version {VERSION}; a newer "
            "package may read it"
        )
    if header.get("kind") != kind:
        raise ValueError(f"it is a {header.get('kind')!r}")
    missing = [name for name in HEADER if name not in header]
    if missing:
        raise ValueError(f"its header lacks {', '.join(missing)}")
