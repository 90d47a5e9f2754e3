"""One file per claim; each prints a ratio from one interleaved run. `make bench` runs them."""
