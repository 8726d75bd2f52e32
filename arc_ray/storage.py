"""`Folder`: a place for files, local or in a bucket, where every file is written whole or not at all."""

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from arc_ray.errors import UserError


@dataclass(frozen=True)
class Folder:
    """A folder on any file system that pyarrow knows; small enough to be sent to workers by value."""

    uri: str
    """Absolute local path, or s3://..., gs://..."""

    @classmethod
    def at(cls, uri: str) -> "Folder":
        """Make a folder from a path or URI; a relative path is taken from the current directory."""
        return cls(uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        """Whether plain file functions work on it."""
        return "://" not in self.uri

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.uri.rsplit("/", 1)[-1]

    def local_path(self) -> Path:
        """Return the path of a local folder; an assertion fails on a bucket."""
        assert self.is_local, f"{self.uri} is not local"
        return Path(self.uri)

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """Return pyarrow's file system and the path within it. Raises UserError for an unknown scheme."""
        try:
            return pafs.FileSystem.from_uri(self.uri) if not self.is_local else (pafs.LocalFileSystem(), self.uri)
        except (ValueError, OSError) as error:
            raise UserError(
                f"storage {self.uri}: {error}; use a local path, s3://bucket/path or gs://bucket/path"
            ) from error

    def exists(self, name: str = "") -> bool:
        """Tell whether a file or folder of this name is there (the folder itself if no name is given)."""
        filesystem, path = self.filesystem()
        return filesystem.get_file_info(f"{path}/{name}" if name else path).type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """List the names in the folder, sorted, without unfinished files; empty if the folder does not exist."""
        filesystem, path = self.filesystem()
        entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(entry.base_name for entry in entries if ".tmp-" not in entry.base_name)

    def read_bytes(self, name: str) -> bytes:
        """Read a whole file. Raises FileNotFoundError."""
        filesystem, path = self.filesystem()
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            return stream.read()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file so that no reader and no crash ever sees a part of it.

        Locally by rename; a bucket's upload is whole by itself. Raises UserError where nothing can be written.
        """
        filesystem, path = self.filesystem()
        try:
            if self.is_local:
                target = Path(path) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            else:
                with filesystem.open_output_stream(f"{path}/{name}") as stream:
                    stream.write(content)
        except OSError as error:
            raise UserError(
                f"storage: cannot write {self.uri}/{name}: {error}; check that it exists and is writable"
            ) from error

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None if it does not exist."""
        return json.loads(self.read_bytes(name)) if self.exists(name) else None

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole; NaN is refused, because JSON has none."""
        self.write_bytes(name, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def read_json_lines(self, name: str, start: int = 0) -> tuple[list[Any], int]:
        """Read a file of one JSON value a line from a byte on; return the values, and the byte where the next will begin.

        A last line that is not whole, since its writer is at work or was killed, is left out. Raises ValueError for any
        other line that is no JSON.
        """
        if not self.exists(name):
            return [], 0
        filesystem, path = self.filesystem()
        with filesystem.open_input_file(f"{path}/{name}") as file:
            size = file.size()
            file.seek(min(start, size))
            content = file.read()
        lines, _, last = content.rpartition(b"\n")
        values = [json.loads(line) for line in lines.splitlines() if line]
        try:
            return [*values, *([json.loads(last)] if last else [])], size
        except ValueError:
            return values, size - len(last)

    def append_bytes(self, name: str, content: bytes) -> None:
        """Append to a file of a local folder; a crash may leave a part of the content. Raises UserError."""
        try:
            with (self.local_path() / name).open("ab") as file:
                file.write(content)
        except OSError as error:
            raise UserError(
                f"storage: cannot write {self.uri}/{name}: {error}; check that it exists and is writable"
            ) from error

    def read_parquet(self, name: str) -> pa.Table:
        """Read a Parquet file. Raises FileNotFoundError."""
        return pq.read_table(pa.BufferReader(self.read_bytes(name)))

    def write_parquet(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file whole; equal tables give equal bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def delete(self, name: str = "") -> None:
        """Delete a file or a folder with all it holds; nothing happens if it is not there."""
        filesystem, path = self.filesystem()
        target = f"{path}/{name}" if name else path
        match filesystem.get_file_info(target).type:
            case pafs.FileType.Directory:
                filesystem.delete_dir(target)
            case pafs.FileType.File:
                filesystem.delete_file(target)
            case _:
                pass

    def rename(self, old: str, new: str) -> None:
        """Move a file or folder inside this folder; on a bucket this copies."""
        filesystem, path = self.filesystem()
        filesystem.move(f"{path}/{old}", f"{path}/{new}")
