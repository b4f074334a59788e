"""The report's style sheet: dark text on white, readable on a screen and on paper."""

CSS = """
:root { --ink: #1a1d21; --soft: #5a626b; --rule: #d9dde2; --panel: #f5f7f9; --accent: #175ca4; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 24px 60px; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 6px; padding-top: 10px; border-top: 2px solid var(--ink); }
h3 { font-size: 15px; margin: 18px 0 2px; }
p { margin: 6px 0 10px; max-width: 80ch; }
.soft, .sub { color: var(--soft); }
.sub { margin: 0 0 18px; }
nav { margin: 0 0 18px; }
nav a { color: var(--accent); margin-right: 16px; text-decoration: none; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(6, 1fr); gap: 10px; margin: 16px 0; }
.tile { border: 1px solid var(--rule); border-radius: 6px; padding: 9px 12px; background: var(--panel); }
.tile b { display: block; font-size: 23px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 12.5px; }
.tile.main { border-color: var(--accent); background: #eaf2fb; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; margin: 8px 0; }
th, td { text-align: right; padding: 5px 9px; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { font-weight: 600; border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
td.text, th.text { text-align: left; }
tr.total td { font-weight: 600; border-top: 1.5px solid var(--ink); }
td.path { overflow-wrap: anywhere; text-align: left; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 8px; }
.bar { display: inline-block; width: 64px; height: 8px; background: #e8ebef; margin-left: 9px; border-radius: 2px; }
.bar i { display: block; height: 100%; background: var(--accent); border-radius: 2px; }
.warn { color: #9c3a00; }
.note-box { border-left: 4px solid #d08a1d; background: #fff8ea; padding: 8px 14px; margin: 10px 0; max-width: 90ch; }
ul.advice { padding-left: 0; list-style: none; max-width: 92ch; }
ul.advice.columns { columns: 2; column-gap: 34px; max-width: none; font-size: 14px; }
ul.advice.columns li { break-inside: avoid; margin-top: 0; }
ul.advice li { margin: 7px 0; padding-left: 19px; text-indent: -19px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 8px 30px; }
.plots p, figure p { font-size: 13.5px; }
.plots figure { margin: 0; }
.plots h3 { margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit; }
svg.plot { max-width: 520px; }
.grid { stroke: #e6e9ed; stroke-width: 1; fill: none; }
.frame { stroke: #4a525a; stroke-width: 1; fill: none; }
.divide { stroke: #4a525a; stroke-width: 1.5; fill: none; }
.cell { stroke: #e1e5ea; stroke-width: 1; }
.mark { stroke: #4a525a; stroke-width: 1.2; stroke-dasharray: 4 3; fill: none; }
.tick { font-size: 11.5px; fill: #2c3238; }
.axis { font-size: 12.5px; fill: #1a1d21; font-weight: 600; }
.note { font-size: 11.5px; fill: #2c3238; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); gap: 16px 22px;
  margin-top: 10px; }
.card { margin: 0; border: 1px solid var(--rule); border-radius: 6px; padding: 9px 11px 11px; }
.card figcaption { font-size: 13.5px; margin-bottom: 5px; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
.pair span { font-size: 12px; color: var(--soft); }
.pair svg { background: #222; max-height: 420px; }
code, pre { font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); border: 1px solid var(--rule); border-radius: 6px; padding: 10px 13px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
@media screen and (max-width: 760px) { .tiles { grid-template-columns: repeat(3, 1fr); } }
@media screen and (max-width: 560px) {
  .cards, .plots { grid-template-columns: 1fr; }
  ul.advice.columns { columns: 1; }
  body { padding: 16px 12px 40px; }
}
@media print {
  @page { margin: 13mm; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 11px; }
  nav, .bar { display: none; }
  h1 { font-size: 20px; }
  h2 { font-size: 15px; margin-top: 22px; }
  h2, h3 { break-after: avoid; }
  table { font-size: 10px; }
  th, td { padding: 3px 5px; }
  .tiles { gap: 6px; }
  .tile { padding: 5px 8px; }
  .tile b { font-size: 16px; }
  .tile span, .card figcaption, .plots p { font-size: 10px; }
  .scroll { overflow: visible; }
  .plots { grid-template-columns: 1fr 1fr; }
  .cards { grid-template-columns: 1fr 1fr; gap: 8px; }
  figure, tr, li, pre, .tiles, svg.confusion { break-inside: avoid; }
  svg.confusion { max-height: 170mm; }
}
"""
