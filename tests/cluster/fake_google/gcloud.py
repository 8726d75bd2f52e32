#!/usr/bin/env python
"""Google's command line as far as the guide uses it, put on the lab's laptop as `gcloud`: asks the fakes."""

import json
import os
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from pyarrow import fs

match sys.argv[1:]:
    case ["auth", "application-default", "login"]:
        pass  # opens a browser
    case ["config", "get", "project"]:
        print("testing")
    case ["compute", "instances", "list", selection]:
        key, _, value = selection.removeprefix("--filter=labels.").partition("=")
        query = urllib.parse.quote(f"(labels.{key} = {value}) AND ((status = PROVISIONING) OR (status = RUNNING))")
        place = f"{os.environ['FAKE_GOOGLE']}/compute/v1/projects/testing/zones/z/instances?filter={query}"
        for instance in json.load(urllib.request.urlopen(place))["items"]:
            print(instance["name"])
    case ["storage", "cp", source, folder]:
        buckets, path = fs.FileSystem.from_uri(source)
        with buckets.open_input_stream(path) as file:
            (Path(folder) / Path(path).name).write_bytes(file.read())
    case words:
        sys.exit(f"no command of the guide: {words}")
