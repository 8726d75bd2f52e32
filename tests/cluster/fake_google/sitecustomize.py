"""Points Google's client at a fake: Python imports this by itself where the folder is in PYTHONPATH and FAKE_GOOGLE is set."""

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from typing import Any

TARGET = "googleapiclient.discovery"


class Finder(MetaPathFinder):
    """Wraps `build` of Google's client when it is imported, and only then."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Find the real module, and change it once it is loaded."""
        if fullname != TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            from google.auth.credentials import AnonymousCredentials

            load(module)
            build = module.build

            def build_fake(service: str, version: str, credentials: Any = None, **rest: Any) -> Any:
                options = {"api_endpoint": f"{os.environ['FAKE_GOOGLE']}/{service}/"}
                return build(service, version, credentials=AnonymousCredentials(), client_options=options, **rest)

            module.build = build_fake

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("FAKE_GOOGLE"):
    sys.meta_path.insert(0, Finder())
