"""Every process that tests start imports this first: Python's collector of cycles rests while libraries are imported.

They make a million objects, all of which stay: a fifth of the CPU seconds of a Ray that starts and of what imports torch,
and another where a process ends.
Workers import nothing: see forks.py.
"""

import atexit
import gc
import os
import sys

gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)

if path := os.environ.get("ARC_RAY_TESTS_FORKS"):
    from forks import be_forked, is_forked

    if is_forked(sys.orig_argv):
        be_forked(path)
