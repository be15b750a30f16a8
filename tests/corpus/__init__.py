"""The corpus of faults: bad input, and odd but good input, made by code, each with what must come of it."""
