"""Image editing: change what was asked, leave the rest alone."""
