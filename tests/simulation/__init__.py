"""The whole protocol in one process, driven by one seed: see `schedule` for what may happen, `oracle` for what may not.

`python -m tests.simulation --seeds 200` runs it, on all cores. The real core and the real mirror; the streams, the API
servers and the hands of brokers and agents are stood in for, because what is tried is every order in which they may
answer.
"""
