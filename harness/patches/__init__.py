"""A change of a model: the algebra of weight changes, and a patch of any of the four seams that is held and let go."""
