"""Slides: opening, checking, reading by microns per pixel, and finding tissue."""
