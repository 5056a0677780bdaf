"""Images for people: masks over frames, contact sheets of examples, attention maps and frames of a segmented video."""
