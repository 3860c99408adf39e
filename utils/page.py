"""Parts of the report page: HTML of tables, figures, ranked lists and contact sheets; one file, nothing fetched."""
import html
import re

from utils.figures import INK, MODALITY_NAMES, VARIABLES

DARK = {"ink": "#e7eaee", "muted": "#9ba4b0", "grid": "#343a43", "paper": "#1b1f25", "s0": "#6ea4ff", "s1": "#ff9350",
        "s2": "#4fc58a", "s3": "#c794ff", "s4": "#ff7a9f", "s5": "#43c6da", "s6": "#d8bd3c", "s7": "#a9b1bb",
        "back": "#121519", "right": "#3ecb7c", "wrong": "#ff6b6b"}
LIGHT = {**{variable: colour for colour, variable in VARIABLES.items()}, "back": "#f3f5f7", "right": "#128a4a",
         "wrong": "#d02f2f"}
STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1320px;margin:0 auto;padding:20px 20px 60px}
header{display:flex;gap:12px;align-items:flex-start;justify-content:space-between}
h1{font-size:24px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere} h2{font-size:19px;margin:40px 0 4px}
h3{font-size:15px;margin:20px 0 6px} p{margin:4px 0 12px;color:var(--muted);max-width:80ch}
a{color:var(--s0)} nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:10px 0}
button{font:inherit;font-size:13px;color:var(--ink);background:var(--paper);border:1px solid var(--grid);
border-radius:8px;padding:5px 12px;cursor:pointer;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));gap:12px;margin:16px 0}
.tile,.panel{background:var(--paper);border:1px solid var(--grid);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:26px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:12px}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr))}
.panel{min-width:0;padding:10px 12px} .panel>svg{display:block;width:100%;height:auto}
svg text{font-family:system-ui,-apple-system,"Segoe UI",sans-serif!important}
svg .named:hover{filter:brightness(1.25) drop-shadow(0 0 2px var(--ink))}
.scroll{overflow-x:auto;margin-bottom:12px}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--muted);font-weight:600} td:first-child,th:first-child,.text{text-align:left}
.list{display:flex;gap:4px;overflow-x:auto;padding:4px 2px 8px;align-items:flex-start}
figure{margin:0;flex:none;text-align:center;font-size:11px;line-height:1.35;color:var(--muted)}
figure img{display:block;height:92px;width:auto;margin:0 auto 2px;border:2px solid var(--grid);border-radius:5px}
.split{display:grid;grid-template-columns:minmax(0,1.6fr) minmax(0,1fr);gap:12px}
.query{padding-right:8px;border-right:1px solid var(--grid);margin-right:3px} .query img{border-color:var(--ink)}
.right img{border-color:var(--right)} .right b{color:var(--right)}
.wrong img{border-color:var(--wrong);border-style:dashed} .wrong b{color:var(--wrong)}
.sheet{display:flex;flex-wrap:wrap;gap:4px} .sheet img{height:74px;border-width:2px} .caption{font-size:13px}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:12px} details{margin:8px 0} summary{cursor:pointer}
@media (max-width:800px){.split{grid-template-columns:1fr}}
@media (max-width:600px){main{padding:14px 12px 40px} .sides{gap:6px}}
"""
SCRIPT = """
document.getElementById("theme").onclick=()=>{const r=document.documentElement,
d=r.dataset.theme?r.dataset.theme==="dark":matchMedia("(prefers-color-scheme: dark)").matches;
r.dataset.theme=d?"light":"dark"}
"""


def escape(text):
    """Text for HTML."""
    return html.escape(str(text))


def page(title, subtitle, sections, images):
    """The whole HTML page.

    Args: sections: list of (anchor, heading, HTML), empty HTML is left out; images: name -> base64 JPEG.
    """
    def variables(theme):
        return "".join(f"--{name}:{value};" for name, value in theme.items())

    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{escape(heading)}</h2>{content}</section>'
                   for anchor, heading, content in sections)
    body = re.sub(r'(?<=<img src=")[^"]*', lambda found: f"data:image/jpeg;base64,{images[found.group()]}", body)
    return (f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
            '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
            f'<style>:root{{color-scheme:light dark;{variables(LIGHT)}}}'
            f'@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}'
            f':root[data-theme=light]{{color-scheme:light;{variables(LIGHT)}}}'
            f':root[data-theme=dark]{{color-scheme:dark;{variables(DARK)}}}{STYLE}</style></head><body><main>'
            f'<header><div><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></div>'
            f'<button id="theme">light / dark</button></header><nav>{links}</nav>{body}</main>'
            f'<script>{SCRIPT}</script></body></html>\n')


def table(head, rows, text_columns=1):
    """A table; the first columns hold text, the others numbers."""
    def cells(tag, row):
        return "".join(f'<{tag}{" class=text" if i < text_columns else ""}>{escape(cell)}</{tag}>'
                       for i, cell in enumerate(row))

    return (f'<div class="scroll"><table><tr>{cells("th", head)}</tr>'
            + "".join(f'<tr>{cells("td", row)}</tr>' for row in rows) + "</table></div>")


def panels(contents, wide=False):
    """Panels side by side, as many as fit."""
    inner = "".join(f'<div class="panel">{content}</div>' for content in contents if content)
    return f'<div class="grid{" wide" if wide else ""}">{inner}</div>' if inner else ""


def tiles(numbers):
    """Large numbers: list of (number, what)."""
    return '<div class="tiles">' + "".join(f'<div class="tile"><b>{escape(number)}</b><span>{escape(what)}</span></div>'
                                           for number, what in numbers) + "</div>"


def picture(image, caption="", kind="", title=""):
    """A framed picture. Args: image: its name; kind: "right", "wrong", "query" or ""; title: tooltip."""
    return (f'<figure class="{kind}" title="{escape(title)}"><img src="{image}" alt="{escape(title or image)}">'
            f'{caption}</figure>')


def ranked_list(entry):
    """A query and its nearest images, of `report_data`'s lists."""
    query = entry["query"]
    shown = [picture(query["image"], f'query<br>id {query["person"]}<br>cam {query["camera"]}', "query",
                     query["path"])]
    for image in entry["gallery"]:
        mark = "✓" if image["right"] else "✗"
        caption = f'<b>{mark}</b> {image["distance"]:.3f}<br>id {image["person"]}<br>cam {image["camera"]}'
        shown.append(picture(image["image"], caption, "right" if image["right"] else "wrong", image["path"]))
    precision = f'{100 * entry["average_precision"]:.1f} % average precision'
    return f'<div class="caption">{precision}</div><div class="list">{"".join(shown)}</div>'


def sheet(content):
    """The contact sheet of one cluster."""
    words = [f'<b>{MODALITY_NAMES[content["modality"]]} cluster {content["cluster"]}</b>: {content["size"]} images']
    if "purity" in content:
        count = content["persons"]
        words.append(f'{100 * content["purity"]:.0f} % show person {content["person"]}'
                     + (f', {count} persons in all' if count > 1 else ""))
    return f'<div class="caption">{", ".join(words)}</div>{members(content["images"])}'


def members(images):
    """Pictures of a cluster's images; those that show another person than most are marked."""
    return '<div class="sheet">' + "".join(
        picture(image["image"], "", {True: "right", False: "wrong"}.get(image.get("right"), ""),
                f'person {image["person"]}' if "person" in image else "") for image in images) + "</div>"


def pair(content):
    """A matched pair of clusters, side by side."""
    verdict = {True: " · <b>same person</b>", False: " · <b>different persons</b>"}.get(content.get("right"), "")
    kind = {True: "right", False: "wrong"}.get(content.get("right"), "")
    sides = "".join(f"<div>{sheet(side)}</div>" for side in content["sides"])
    return (f'<div class="caption {kind}">cosine similarity {content["similarity"]:.3f}{verdict}</div>'
            f'<div class="sides">{sides}</div>')


def colour(index):
    """The series colour of the light theme, by index; the ink beyond the last."""
    known = [c for c, variable in VARIABLES.items() if variable.startswith("s")]
    return known[index] if index < len(known) else INK
