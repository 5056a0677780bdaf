"""How fast, how much memory, and what share of what the device can do: python -m lbdt_jax.benchmark."""
