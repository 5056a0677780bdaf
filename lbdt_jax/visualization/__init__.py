"""Pictures of inputs, masks and attention."""
