"""`Folder`: a place for files, local or in a bucket, where every file is written whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from arc_ray.contents import damaged, parse_json, parse_lines, parse_parquet, parse_yaml
from arc_ray.copies import cached
from arc_ray.errors import FULL, IN_THE_WAY, StorageError, UserError, refuse_place, unreadable
from arc_ray.seeding import digest64

LEFTOVER_SECONDS = 300.0
"""An unfinished file that nobody has written to for so long has lost its writer."""

S3_ATTEMPTS = 8
"""Of a request; the waits between them double, so the last one is half a minute after the first."""
GOOGLE_SECONDS = 120
"""How long a request to Google's storage is tried anew: its library's own quarter of an hour looks like a hung command."""


@dataclass(frozen=True)
class Folder:
    """A folder on any file system that pyarrow knows; small enough to be sent to workers by value."""

    uri: str
    """Absolute local path, or s3://..., gs://..., with a query where the bucket needs one:
    s3://bucket/path?endpoint_override=host:port."""

    @classmethod
    def at(cls, uri: str) -> "Folder":
        """Make a folder from a path, relative ones to the current directory, or a URI. Raises UserError for one that holds a
        key, which would end up in config.yaml, run.json, logs and reports, and for what is no path."""
        refuse_place(uri)
        if "://" not in uri:
            return cls(str(Path(os.path.expanduser(uri)).absolute()))
        path, query = _path_and_query(uri)
        return cls(path.rstrip("/") + query)

    @property
    def is_local(self) -> bool:
        """Whether plain file functions work on it."""
        return "://" not in self.uri

    def __truediv__(self, name: str) -> "Folder":
        path, query = _path_and_query(self.uri)
        return Folder(f"{path}/{name}{query}")

    @property
    def name(self) -> str:
        """Last part of the path."""
        return _path_and_query(self.uri)[0].rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Folder":
        """The folder that this one is in."""
        path, query = _path_and_query(self.uri)
        return Folder(path.rsplit("/", 1)[0] + query)

    def local_path(self) -> Path:
        """Return the path of a local folder; an assertion fails on a bucket."""
        assert self.is_local, f"{self.uri} is not local"
        return Path(self.uri)

    def on_this_node(self) -> Path:
        """Return a path where the folder's files can be read: its own, or for a bucket that of a copy in `cached`.

        The copy is made once for each content (names, sizes, times) and shared by the processes of the node.
        Raises UserError if there is nothing to copy.
        """
        if self.is_local:
            return self.local_path()
        filesystem, path = self.filesystem()
        if not (content := self.contents()):
            raise UserError(f"{self.uri}: there is no such folder, or it is empty")

        def copy(target: Path) -> None:
            for file, _, _ in content:  # not pyarrow, which knows of no folder that has no object of its own
                (target / file.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(path, str(target), source_filesystem=filesystem)

        return cached(f"{self.name}-{digest64(self.uri, content):016x}", copy, sum(size for _, size, _ in content))

    def filesystem(self, name: str = "") -> tuple[pafs.FileSystem, str]:
        """Return pyarrow's file system, and the path within it of the folder or of what has a name there. Raises UserError
        for an unknown scheme."""
        if self.is_local:
            filesystem, path = pafs.LocalFileSystem(), self.uri
        else:
            uri, query = _path_and_query(self.uri)
            *bucket, names = f"{uri}/".split("/", 3)
            try:
                filesystem, root = _connect("/".join(bucket) + "/" + query, os.getpid())
            except (ValueError, OSError) as error:
                raise UserError(f"storage {uri}: {error}; use a local path, s3://bucket/path or gs://...") from error
            path = f"{root.rstrip('/')}/{unquote(names)}".rstrip("/")
        return filesystem, f"{path}/{name}" if name else path

    def exists(self, name: str = "") -> bool:
        """Tell whether a file or folder of this name is there (the folder itself if no name is given)."""
        filesystem, path = self.filesystem(name)
        with self._readable(name):
            return filesystem.get_file_info(path).type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """List the names in the folder, sorted, without unfinished files; empty if the folder does not exist."""
        filesystem, path = self.filesystem()
        if filesystem.type_name == "gcs":  # where pyarrow lists no folder that has no object of its own
            return sorted({name.split("/")[0] for name in self.files()})
        with self._readable(""):
            entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(entry.base_name for entry in entries if ".tmp-" not in entry.base_name)

    def files(self) -> list[str]:
        """List the files below the folder by their paths from it, sorted, without unfinished ones."""
        return [name.lstrip("/") for name, *_ in self.contents() if ".tmp-" not in name]

    def contents(self) -> list[tuple[str, int, int]]:
        """List the path, size in bytes and time (ns) of each file below the folder, sorted: other contents differ there."""
        filesystem, path = self.filesystem()
        entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
        return sorted((e.path[len(path) :], e.size, e.mtime_ns) for e in entries if e.type == pafs.FileType.File)

    def read_bytes(self, name: str) -> bytes:
        """Read a whole file as one writer left it. Raises FileNotFoundError, and UserError for what is no readable file.

        A bucket is asked for the file's size, then for so many bytes: what is written over in between would end too early.
        """
        filesystem, path = self.filesystem(name)
        while True:
            with self._readable(name), filesystem.open_input_stream(path) as stream:
                content, version = stream.read(), stream.metadata()
            if self.is_local or filesystem.open_input_stream(path).metadata() == version:
                return content

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Turn into a UserError what a local file system says of a place that cannot be read, now or later."""
        try:
            yield
        except OSError as error:
            if self.is_local and error.errno in (None, *IN_THE_WAY):  # pyarrow has no number for a folder
                raise unreadable(self.uri, (self / name).uri, error) from error
            raise

    def read(self, name: str, parse: Callable[[bytes], Any], may_miss: bool = False) -> Any:
        """Parse a file; one that `may_miss` is None then. Raises UserError for what is missing, unreadable or damaged."""
        try:
            content = self.read_bytes(name)
        except FileNotFoundError as error:
            if may_miss:
                return None
            raise UserError(f"{(self / name).uri} is missing; was its folder only partly copied?") from error
        with damaged((self / name).uri):
            return parse(content)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file so that no reader and no crash ever sees a part of it. Raises UserError where that is impossible."""
        with self._writing(name) as file:
            file.write(content)

    def write_file(self, name: str, source: Path) -> None:
        """Do the same with a local file, which may be larger than memory. Raises UserError."""
        with source.open("rb") as content, self._writing(name) as file:
            shutil.copyfileobj(content, file)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Any]:
        """Open a file that is whole once it is there: locally by rename; a bucket's upload is so by itself."""
        filesystem, path = self.filesystem(name)
        with self._writable(name):
            if not self.is_local:
                with filesystem.open_output_stream(path) as stream:
                    yield stream
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
            try:
                with temporary.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writable(self, name: str) -> Iterator[None]:
        """Turn what a file system says of a place that cannot be written into a StorageError that says what would help."""
        try:
            yield
        except OSError as error:
            is_full = error.errno in FULL
            cure = "free some space, or give another storage=..." if is_full else "check that it exists and is writable"
            raise StorageError(f"storage: cannot write {(self / name).uri}: {error}; {cure}") from error

    def read_json(self, name: str, shape: Any = Any) -> Any:
        """Read a JSON file of a shape, a type that pydantic knows; None if it does not exist. Raises UserError."""
        return self.read(name, partial(parse_json, shape=shape), may_miss=True)

    def read_yaml(self, name: str, shape: Any = dict[str, Any]) -> Any:
        """Do the same with a YAML file."""
        return self.read(name, partial(parse_yaml, shape=shape), may_miss=True)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole; NaN is refused, because JSON has none."""
        self.write_bytes(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def read_json_lines(self, name: str, start: int = 0, shape: Any = Any) -> tuple[list[Any], int]:
        """Read a file of one JSON value a line from a byte on; return the values, and the byte where the next will begin,
        which is that of a last line that is not whole. Raises UserError for other lines without the shape."""
        filesystem, path = self.filesystem(name)
        try:
            with self._readable(name), filesystem.open_input_file(path) as file:
                size = file.size()
                content = file.read_at(size - start, start) if start < size else b""  # Google's refuses to read nothing
        except FileNotFoundError:
            return [], 0
        values, left = parse_lines(content, shape, (self / name).uri + (f" from byte {start} on" if start else ""))
        return values, size - left

    def append_bytes(self, name: str, content: bytes) -> None:
        """Append to a file of a local folder; a crash may leave a part of the content. Raises UserError."""
        with self._writable(name), (self.local_path() / name).open("ab") as file:
            file.write(content)

    def try_writing(self, creates: bool = True) -> None:
        """Find out that nothing can be written, before there is anything to lose; without `creates` by a file without a
        name in the nearest local folder that exists. Raises UserError."""
        if creates or not self.is_local:
            self.write_bytes(".writable", b"written")  # an empty file has room on a full disk
            self.delete(".writable")
            return
        with self._writable(".writable"):  # a name that is too long cannot even be looked for
            nearest = next(place for place in (self.local_path(), *self.local_path().parents) if place.exists())
        with Folder(str(nearest))._writable(".writable"), tempfile.TemporaryFile(dir=nearest):
            pass

    def clear_leftovers(self) -> None:
        """Delete what killed writers left below a local folder: unfinished files that nobody has written to for a while."""
        # What a killed driver started may still delete a checkpoint here, which `Path.rglob` would trip over.
        for folder, _, names in os.walk(self.uri) if self.is_local else ():
            for path in (Path(folder) / name for name in names if ".tmp-" in name):
                with contextlib.suppress(FileNotFoundError):  # its writer was alive and has finished it
                    if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                        path.unlink()

    def read_parquet(self, name: str) -> pa.Table:
        """Read a Parquet file. Raises UserError."""
        return self.read(name, parse_parquet)

    def write_parquet(self, name: str, table: pa.Table, **settings: Any) -> None:
        """Write a Parquet file whole, with pyarrow's settings; equal tables give equal bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **{"compression": "zstd", **settings})
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def delete(self, name: str = "") -> None:
        """Delete a file or a folder with all it holds; nothing happens if it is not there, or if others delete it too."""
        filesystem, path = self.filesystem(name)
        with contextlib.suppress(FileNotFoundError):
            kind = filesystem.get_file_info(path).type
            if kind == pafs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                filesystem.delete_file(path)


@lru_cache
def _connect(bucket: str, process: int) -> tuple[pafs.FileSystem, str]:
    """Make the file system of a bucket once in a process: a forked one must not use its parent's connections."""
    if bucket.startswith(("gs://", "gcs://")) and "retry_limit_seconds=" not in bucket:
        bucket += f"{'&' if '?' in bucket else '?'}retry_limit_seconds={GOOGLE_SECONDS}"
    filesystem, root = pafs.FileSystem.from_uri(bucket)
    if isinstance(filesystem, pafs.S3FileSystem):
        # Made from a URI it would give up after 6 s: a run of days would end by a hiccup of the storage.
        make, (options,) = filesystem.__reduce__()
        filesystem = make(options | {"retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)})
    return filesystem, root


def _path_and_query(uri: str) -> tuple[str, str]:
    """Take a URI apart before its question mark; a local path may hold one that means nothing."""
    path, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return path, mark + query
