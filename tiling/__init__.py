"""Tiles: laying a grid over tissue, cutting, normalising the stain, and storing durably."""
