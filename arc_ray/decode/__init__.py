"""Answers of a model in batches: greedy, sampled, all above a probability, constrained to grids, rescored; vLLM."""
