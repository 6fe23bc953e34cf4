"""NATS as broker, agent and subscribers use it: the one part of `schemas` that imports nats.

`connection`: connect, ask, publish, listen. `follow`: a stream in order, through server restarts. `reader`: single
messages, ranges and the last message of each subject. It moves messages and knows nothing of what they say.
"""
