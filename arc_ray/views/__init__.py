"""A task under one augmentation with one pair to answer: a value that random draws, grids and names follow from."""
