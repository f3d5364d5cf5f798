"""Training: the recipe's mathematics, the compiled step, the loop, and exact continuation."""
