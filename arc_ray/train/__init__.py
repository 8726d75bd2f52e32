"""Training: the loop, DeepSpeed behind it, checkpoints, validation, the worker function, and `driver.run_training`."""
