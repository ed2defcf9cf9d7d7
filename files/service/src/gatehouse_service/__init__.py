"""What Gatehouse's own services have in common: configuration, serving, and systemd. Copied beside each of them."""
