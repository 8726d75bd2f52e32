"""Generation in batches on a plain transformers model: greedy, sampling, search by probability, scoring of answers."""

from arc_ray.generation.grammar import GridGrammar
from arc_ray.generation.scoring import score_answers
from arc_ray.generation.search import find_answers
from arc_ray.generation.vllm import VllmWriter
from arc_ray.generation.writing import Answer, Writer, generate_greedily, generate_samples

__all__ = [
    "Answer",
    "GridGrammar",
    "VllmWriter",
    "Writer",
    "find_answers",
    "generate_greedily",
    "generate_samples",
    "score_answers",
]
