"""Every process that tests start imports this first: Python's collector of cycles rests while libraries are imported.

They make a million objects, all of which stay: a fifth of the CPU seconds of a Ray that starts and of what imports torch.
"""

import gc

gc.set_threshold(100_000, 50, 50)
