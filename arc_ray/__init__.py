"""arc_ray: fine-tune language models on ARC puzzles, distributed by Ray, with an interval around every answer."""

__version__ = "0.1.0"
