"""Write explanations as one HTML file that loads nothing from elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from abft.runs.explain import Explanation

TEMPLATES = Path(__file__).parent / "templates"


def explanation_page(explanations: Sequence[Explanation]) -> str:
    """Return the page. Every text is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["zip"] = lambda a, b: list(zip(a, b, strict=True))
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    template = environment.get_template("explanations.html")
    return template.render(explanations=explanations, style=style)
