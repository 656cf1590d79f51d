"""Wire formats of prediction clients, as pure codecs without I/O."""
