"""From a sentence to the arrays that the text encoder reads."""
