"""Pages for people: rendered on the server, no script, a strict content security policy."""

from collections.abc import Iterable
from importlib import resources
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action {}"


class Pages:
    """The templates, and the style sheet that they share."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=PackageLoader(__package__), autoescape=select_autoescape(), undefined=StrictUndefined
        )
        self.style = (resources.files(__package__) / "static" / "style.css").read_text("utf-8")

    def render(
        self, template: str, status: int = 200, form_action: Iterable[str] = (), **values: Any
    ) -> HTMLResponse:
        """A page.

        Args:
            form_action: CSP sources that the page's form may lead to besides this service, redirects
                included.
        """
        policy = POLICY.format(" ".join(["'self'", *form_action]))
        html = self._templates.get_template(template).render(**{"wide": False, **values})
        return HTMLResponse(html, status, {**HEADERS, "Content-Security-Policy": policy})

    def error(self, title: str, explanation: str, status: int) -> HTMLResponse:
        """A page that says what went wrong, and what a person can do."""
        return self.render("error.html", status, title=title, explanation=explanation)
