"""What Dragoman costs, each figure as a ratio against something real that was measured in the same run.

`python -m tests.bench` (or `make bench`) prints the tables of docs/benchmarks.md. Nothing in here is a test: a timed
test fails on a busy machine and proves nothing on an idle one. That the benchmarks run at all is tested, in small.
"""
