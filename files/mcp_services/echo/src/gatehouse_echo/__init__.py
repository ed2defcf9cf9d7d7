"""Shows a client of the gateway what a service sees of it."""
