"""Views -> token ids: prompt formats, grid encoders, tokenizers, the look-up codec, and lengths before any token exists."""
