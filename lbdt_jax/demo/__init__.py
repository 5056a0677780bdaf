"""A page to try a model in the browser: `python -m lbdt_jax.demo`."""
