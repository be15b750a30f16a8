"""The viewer: slides, heatmaps and marks in a local page; nothing leaves the machine."""
