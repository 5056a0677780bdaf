"""Speed, memory and device utilization of the model: python -m lbdt_jax.benchmark."""
