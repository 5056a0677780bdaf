"""Speed, memory and device utilisation of the model: python -m lbdt_jax.benchmark."""
