"""Training: the loop, DeepSpeed behind it, checkpoints, validation, the worker function, and `run.run_training`."""
