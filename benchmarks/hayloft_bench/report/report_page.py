"""The frame of ``report.html``: its style and its few lines of script, all in the page."""

from __future__ import annotations

from hayloft_bench.report.plot_style import DARK, LIGHT


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in colours.items())


STYLE = f"""
:root {{ color-scheme: light dark; --paper: #ffffff; --card: #fafaf9; --good: #166534; --bad: #b91c1c;
  --unsure: #854d0e;  {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #1c1917; --card: #262220; --good: #4ade80; --bad: #f87171;
  --unsure: #facc15; {_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 84rem; padding: 1.25rem clamp(0.9rem, 3vw, 2.5rem) 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; margin: 0.5rem 0 0.2rem; }}
h2 {{ font-size: 1.25rem; margin: 2.6rem 0 0.4rem; }}
h3 {{ font-size: 1rem; margin: 0 0 0.2rem; }}
p {{ margin: 0.3rem 0 0.8rem; max-width: 60rem; }}
small, .quiet, figcaption {{ color: var(--muted); font-size: 0.9rem; }}
nav a {{ color: inherit; margin-right: 1rem; white-space: nowrap; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21.5rem), 1fr)); gap: 1rem;
  align-items: start; }}
figure {{ margin: 0; padding: 0.9rem; background: var(--card); border: 1px solid var(--grid); border-radius: 0.6rem; }}
figure svg {{ display: block; width: 100%; height: auto; }}
figure svg text {{ font-family: inherit !important; }}
figcaption {{ margin-top: 0.3rem; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr));
  gap: 0.2rem 1.5rem; }}
.facts dt {{ color: var(--muted); font-size: 0.85rem; }} .facts dd {{ margin: 0 0 0.4rem; overflow-wrap: anywhere; }}
.scroll {{ overflow: auto; border: 1px solid var(--grid); border-radius: 0.6rem; max-height: 42rem; }}
table {{ border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.35rem 0.7rem; text-align: left; border-bottom: 1px solid var(--grid); white-space: nowrap; }}
td.wide {{ white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }}
th {{ position: sticky; top: 0; background: var(--card); }}
td.number, th.number {{ text-align: right; }}
th button {{ all: unset; cursor: pointer; }} th button:focus-visible {{ outline: 2px solid var(--h0); }}
th[aria-sort=ascending] button::after {{ content: " ▲"; }} th[aria-sort=descending] button::after {{ content: " ▼"; }}
tr.ours td {{ font-weight: 600; }} tr.invalid td {{ color: var(--muted); text-decoration: line-through; }}
tr.invalid td.wide {{ text-decoration: none; }}
.holds {{ color: var(--good); font-weight: 600; }} .misses {{ color: var(--bad); font-weight: 600; }}
.unsure {{ color: var(--unsure); font-weight: 600; }}
code {{ font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.88em; overflow-wrap: anywhere; }}
.dot {{ display: inline-block; width: 0.75em; height: 0.75em; border-radius: 50%; margin-right: 0.45em; }}
.legend span {{ margin-right: 1.2rem; white-space: nowrap; }}
ul {{ padding-left: 1.2rem; max-width: 60rem; }}
@media print {{ .scroll {{ max-height: none; overflow: visible; }} figure {{ break-inside: avoid; }} }}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(one => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const number = head.classList.contains("number");
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return (number ? x - y : x.localeCompare(y)) * (down ? -1 : 1);
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(order));
  }));
}
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page asks for nothing outside of itself, and the browser holds it to that."""


def page(title: str, body: str) -> str:
    """``title`` is escaped already, as the body is."""
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
