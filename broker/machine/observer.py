"""Who is told how far the machine has come, so that times can be taken without a clock in here."""

from broker.world.keys import ClaimKey


class Observer:
    """Hears of each stage and says nothing: what the machine does never depends on it. This one does not listen."""

    def deciding(self) -> None:
        """From here on claims are tried, one after the other."""

    def filtered(self) -> None:
        """Which devices suit the claim that is being tried is known; now they are searched."""

    def decided(self, claim: ClaimKey) -> None:
        """This claim was tried; the next one's turn begins."""
