"""Heatmaps: tile scores painted on the slide's frame, as pyramids, pictures and QuPath objects."""
