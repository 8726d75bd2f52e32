"""Search: a space of config keys becomes trials of `run_training`."""
