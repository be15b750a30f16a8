"""Multiple-instance learning: encoders, bags, heads, training, prediction and evaluation."""
