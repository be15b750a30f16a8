"""``microtome doctor``: whether a machine and an output are fit, how fast they are, what a plan takes."""
