"""Large pictures and videos at the front door."""
