"""What travels on the bus: subjects, state messages, ledger entries, calls, and how they become bytes.

`state`: what an agent says of its cluster. `ledger`: what the broker decided and what became of it. `calls`:
heartbeats, asks, dead letters. `subjects`: where each goes. `codec`: bytes, and the CloudEvents headers around them.
"""
