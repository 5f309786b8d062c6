"""The benchmark: every method from the same start, at equal effort, on several seeds; its tables come from one file."""
