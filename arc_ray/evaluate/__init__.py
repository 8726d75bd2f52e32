"""Evaluation: views are answered, turned back, voted on and scored."""
