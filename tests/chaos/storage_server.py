"""A bucket that fails when it is told to: moto's S3 behind a layer that answers 500 or 503, hangs, truncates or hangs up."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pyarrow.fs as pafs
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BucketFault = Literal["500", "503", "hangs", "truncates", "hangs up", "loses the reply"]
BUCKET_FAULTS: tuple[BucketFault, ...] = ("500", "503", "hangs", "truncates", "hangs up", "loses the reply")
HANG_SECONDS = 60.0


class StorageServer:
    """Serves S3 from a thread. While `faults` is above zero, that many requests are answered by `fault`."""

    def __init__(self) -> None:
        self.fault: BucketFault = "500"
        self.faults = self._before = 0
        self._lock = threading.Lock()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
        self._s3 = DomainDispatcherApplication(create_backend_app)
        os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.place = f"127.0.0.1:{self._server.server_port}"

    def bucket(self, name: str) -> str:
        """Make a bucket, or find it; return the URI of a storage in it."""
        pafs.S3FileSystem(endpoint_override=self.place, scheme="http", allow_bucket_creation=True).create_dir(name)
        return f"s3://{name}/runs?scheme=http&endpoint_override={self.place}"

    def num_files(self, bucket: str) -> int:
        """Count the files in a bucket; pyarrow's empty ones that stand for folders are none."""
        return sum(not key.endswith("/") for key in list(s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys))

    def fail(self, fault: BucketFault, times: int, after: int = 0) -> None:
        """Answer so many requests by a fault, after so many others."""
        with self._lock:
            self.fault, self.faults, self._before = fault, times, after

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            fault = self.fault if self.faults and not self._before else None
            self.faults -= fault is not None
            self._before = max(0, self._before - 1)
        match fault:
            case None:
                return self._s3(request, start)
            case "500" | "503":
                request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
                start(f"{fault} Service Unavailable", [("Content-Length", "0")])
                return []
            case "truncates" if request["REQUEST_METHOD"] == "GET":
                content = b"".join(self._s3(request, start))
                return [content[: len(content) // 2]]  # the header still promises all of it
            case "loses the reply":
                list(self._s3(request, lambda *_: None))
            case "hangs":
                time.sleep(HANG_SECONDS)
        request["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        start("500 Connection lost", [])
        return []
