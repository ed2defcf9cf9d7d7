"""What a site's robots.txt says (RFC 9309)."""

AGENT = "gatehouse-fetch"


def allows(robots: bytes, url: str) -> bool:
    """Whether a robots.txt lets us fetch a URL. What it costs to know that is up to the site: for `Workers` only."""
    # Here: what only the workers need.
    from protego import Protego

    return Protego.parse(robots.decode("utf-8-sig", "replace")).can_fetch(url, AGENT)
