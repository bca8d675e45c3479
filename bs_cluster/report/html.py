"""The report as one file for a browser: ``report.md`` as HTML with its figures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

# Table cells keep their numbers under one another; the page follows the reader's light or dark.
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1.5rem; }
h2 { margin-top: 2.4rem; border-bottom: 1px solid #8884; padding-bottom: .3rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .8rem; border-bottom: 1px solid #8883; vertical-align: top; }
tbody tr:hover { background: #8881; }
code { font-size: .92em; background: #8882; border-radius: 4px; padding: .05em .3em; }
pre code { display: block; padding: 1rem; overflow-x: auto; }
img { max-width: 100%; background: white; border-radius: 6px; }
"""
FOLDED = ("<details><summary>Configuration</summary>", "</details>")  # all the HTML that the Markdown has


def render_html(title: str, markdown: str, folder: Path, figures: Iterable[str]) -> str:
    """``markdown`` as a whole page that loads nothing; ``figures`` are paths of PNG files in ``folder`` which it shows.
    What prompts and answers hold is text and never markup."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    for tag in FOLDED:
        body = body.replace(f"<p>{escape(tag)}</p>", tag)
    for figure in figures:
        inside = base64.b64encode((folder / figure).read_bytes()).decode()
        body = body.replace(f'src="{escape(figure)}"', f'src="data:image/png;base64,{inside}"')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html>\n<html><head>{head}</head><body>\n{body}</body></html>\n"
