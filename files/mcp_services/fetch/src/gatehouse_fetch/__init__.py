"""Gets a web page as Markdown for a model, and reaches nothing that only this host can reach."""

VERSION = "0.1.0"


class FetchError(Exception):
    """Why there is no page: a sentence for the model that asked, without the URL's path or query."""
