"""Few-shot: tasks of a few labelled bags each, methods that learn from these, and what they are worth."""
