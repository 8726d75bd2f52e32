"""What a task is, every source of tasks, and how two tasks are found to be the same."""
