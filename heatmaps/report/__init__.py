"""Reports of slides and of a cohort: one HTML file and one JSON file each, to read, print and hand on."""
