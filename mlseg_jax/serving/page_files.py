"""The page, put together from its files; the same one with a server and without."""

import importlib.resources

from mlseg_jax.export.predictor import Predictor

OVER_HTTP = ("over_http.js", "picture.js", "page.js", "video.js")
"""Scripts of the page whose pictures go to the server that it came from."""

IN_BROWSER = (
    *("resampling.js", "predictor.js", "in_browser.js"),
    *("picture.js", "page.js", "video.js"),
)
"""Scripts of the page that segments by itself."""


def page(scripts: tuple[str, ...], nonce: str = "") -> str:
    """One HTML file with its styles and scripts.

    ``nonce``: what scripts and styles name so that a content policy lets them run.
    """
    tags = (f'<script nonce="{nonce}">\n{page_file(name)}</script>' for name in scripts)
    text = page_file("page.html").replace("{{style}}", page_file("page.css"))
    return text.replace("{{nonce}}", nonce).replace("{{scripts}}", "\n".join(tags))


def page_file(name: str) -> str:
    folder = importlib.resources.files("mlseg_jax.serving")
    return (folder / "page" / name).read_text(encoding="utf-8")


def facts(predictor: Predictor, usual: int, num_examples: int) -> dict:
    """What the page says of the model."""
    about = predictor.about
    return {
        "name": about["model"]["name"],
        "data": about["model"]["data"],
        "step": about["model"]["step"],
        "num_classes": len(predictor.names),
        "usual_k": min(usual, predictor.num_ranks),
        "largest_k": predictor.num_ranks,
        "selects": about["selection"]["name"] == "top_k",
        "examples": num_examples,
    }
