"""Files of a workspace on any pyarrow filesystem: whole reads, and writes that nobody sees half of."""

import contextlib
import hashlib
import os
import secrets

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rayrec.errors import NotFound

CHUNK = 1 << 20


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow filesystem and path of a local path or URI (s3://, gs://, or any fsspec scheme)."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        return pafs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        import fsspec

        scheme, _, path = uri.partition("://")
        try:
            return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem(scheme))), path.rstrip("/")
        except (ValueError, ImportError) as error:
            raise NotFound(f"no filesystem for {uri!r}: {error}") from error


class Files:
    """A directory on a filesystem. Names are given in parts: `files.read_bytes("indexes", "v1", "a.json")`."""

    def __init__(self, uri: str, filesystem: pafs.FileSystem, root: str):
        self.uri = uri
        self.fs = filesystem
        self.root = root
        self.is_local = isinstance(filesystem, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def exists(self, *parts: str) -> bool:
        return self.fs.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def names(self, *parts: str) -> list[str]:
        """Names directly under a directory, sorted; empty if it does not exist."""
        selector = pafs.FileSelector(self.path(*parts), allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read_bytes(self, *parts: str) -> bytes:
        try:
            with self.fs.open_input_stream(self.path(*parts)) as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise NotFound(f"{'/'.join(parts)}: no such file in workspace {self.uri}") from error

    def write_bytes(self, data: bytes | pa.Buffer, *parts: str) -> None:
        """Write one file so that no reader ever sees a part of it, and a crash leaves old or new.

        Locally: temporary file, fsync, rename, fsync of the directory. Object stores publish a PUT whole.
        """
        path = self.path(*parts)
        if not self.is_local:
            self.fs.create_dir(path.rpartition("/")[0], recursive=True)
            with self.fs.open_output_stream(path) as stream:
                stream.write(data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(4)}.tmp"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        fsync(os.path.dirname(path))

    def write_once(self, data: bytes, *parts: str) -> None:
        """Write one file, only its owner may read it, unless it is there already.

        Of several writers on a local filesystem the first wins; on object stores, which have no such step, the last.
        """
        if not self.is_local:
            self.write_bytes(data, *parts)
            return
        path = self.path(*parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(4)}.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.unlink(temporary)

    def write_parquet(self, table: pa.Table, *parts: str) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(sink.getvalue(), *parts)

    def read_parquet(self, *parts: str, columns: list[str] | None = None) -> pa.Table:
        """One parquet file, or all of a directory's in name order."""
        path = self.path(*parts)
        names = (
            [path]
            if path.endswith(".parquet")
            else [f"{path}/{name}" for name in self.names(*parts) if name.endswith(".parquet")]
        )
        if not names:
            raise NotFound(f"{'/'.join(parts)}: no parquet files in workspace {self.uri}")
        return pa.concat_tables([pq.read_table(n, columns=columns, filesystem=self.fs) for n in names])


def checksum(filesystem: pafs.FileSystem, path: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with filesystem.open_input_stream(path) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def checksum_of(content: bytes) -> str:
    """As `checksum` of a file with this content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
