"""The campaigns of `nox -s torture`: power cuts, and faults of system calls, at every moment of real runs."""
