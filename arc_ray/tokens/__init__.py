"""Views -> token ids: the tokenizers, the look-up codec, and lengths known before any token exists."""

from arc_ray.tokens.codec import Codec
from arc_ray.tokens.lengths import fit_views, view_lengths
from arc_ray.tokens.sample import make_codec
from arc_ray.tokens.tokenizer import frame_of, make_tiny_tokenizer, refuse_other_frame

__all__ = ["Codec", "fit_views", "frame_of", "make_codec", "make_tiny_tokenizer", "refuse_other_frame", "view_lengths"]
