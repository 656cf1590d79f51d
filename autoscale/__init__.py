"""The shared pool: which slot holds which model."""
