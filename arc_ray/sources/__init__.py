"""Where puzzles come from: each module is one kind of source, and a few functions."""
