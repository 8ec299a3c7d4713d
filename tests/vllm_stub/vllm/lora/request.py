"""As there."""


class LoRARequest:
    """An adapter, of which none is asked for."""
