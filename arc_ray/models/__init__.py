"""Models: base, adapters and LoRA, packed views kept apart, the loss, and what a model takes before it is loaded."""
