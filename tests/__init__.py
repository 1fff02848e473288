"""The tests: a mirror of the source tree, and ``support``, what they stand on."""
