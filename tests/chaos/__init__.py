"""Real processes on real servers, killed, stopped and cut off at random while claims come and go; then all must agree.

`schedule` says what happens when, from a seed; `links` and `servers` are what it happens to; `load` writes the claims;
`run` puts it together; `agreement` compares clusters, ledger and broker at the end.
"""
