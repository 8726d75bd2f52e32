"""The main job: a question becomes data, starts, a search, a controlled comparison, an evaluation and a report."""
