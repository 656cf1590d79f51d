"""The front door: listeners, protocols, router and the client end of the link."""
