"""Imported last by a process that is forked: what libraries make once a process is made, and the collector of cycles has
nothing to walk through."""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")
gc.collect()
gc.freeze()
