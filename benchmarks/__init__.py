"""The figures of benchmarks/README.md, measured: ``python -m benchmarks [--only NAME]``."""
