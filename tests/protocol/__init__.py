"""The protocol between agents and broker, told history by history, with the real core and the real mirror."""
