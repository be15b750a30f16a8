"""How a report looks, on a screen and on A4."""

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; color: #1d1d1d; background: #fff; margin: 0; }
main { max-width: 1080px; margin: 1.5em auto; padding: 0 1em; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; margin: 0 0 .4em; }
h2 { font-size: 1.15em; margin: 1.8em 0 .5em; border-bottom: 2px solid #1d1d1d; padding-bottom: .15em; }
h3 { font-size: 1em; margin: 1.2em 0 .4em; }
p { max-width: 75ch; margin: .5em 0; } .small { font-size: .87em; color: #444; }
a { color: #004a87; }
table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; min-width: 24em;
        max-width: 100%; }
caption { text-align: left; font-size: .87em; color: #444; padding: .2em 0; }
td, th { padding: .22em .7em .22em 0; border-bottom: 1px solid #ccc; text-align: left; vertical-align: top;
         overflow-wrap: break-word; }
th[scope="row"] { overflow-wrap: anywhere; min-width: 8em; }
.facts { width: 100%; } .facts th { width: 30%; } .facts td { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } .words { min-width: 13em; }
#slides { font-size: .87em; } #slides td, #slides th { padding-right: .5em; }
#slides .name { min-width: 5.5em; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #777; } th { font-weight: 600; }
code { font: .85em/1.3 "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.summary { border: 2px solid #1d1d1d; padding: .5em 1em; margin: 1em 0; }
.summary p { margin: .25em 0; } .big { font-size: 1.25em; font-weight: 600; }
.warning { border-left: 5px solid #b34700; background: #fff5ec; padding: .25em .8em; }
figure { margin: 0 0 .8em; } figcaption { font-size: .87em; color: #333; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; border: 1px solid #bbb; }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .4em 1.2em;
        align-items: start; }
.tiles { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: .5em; }
.tiles figcaption { font-size: .75em; line-height: 1.3; } .tiles img { width: 100%; }
.histograms { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .5em 1.2em; }
svg { display: block; border-bottom: 1px solid #1d1d1d; width: 100%; height: 70px; }
svg rect { fill: #3b6287; }
.scale { display: flex; justify-content: space-between; font-size: .8em; color: #444; }
.legend { display: grid; grid-template-columns: auto 1fr auto; gap: .5em; align-items: center;
          font-size: .87em; }
.legend img { width: 100%; height: .9em; }
.key { display: inline-block; margin-right: 1.4em; }
.key i { display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em;
         border: 1px solid #555; }
button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; color: inherit;
         cursor: pointer; text-align: left; }
button:focus-visible, a:focus-visible { outline: 3px solid #004a87; outline-offset: 2px; }
th[aria-sort="ascending"] button::after { content: " ▲"; }
th[aria-sort="descending"] button::after { content: " ▼"; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media (max-width: 700px) { .pair { grid-template-columns: 1fr; }
  .tiles, .histograms { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@page { size: A4; margin: 14mm 14mm 16mm; @bottom-right { content: counter(page) " / " counter(pages);
        font: 8pt sans-serif; color: #444; } }
@media print {
  body { font-size: 9pt; } main { max-width: none; margin: 0; padding: 0; }
  a { color: inherit; text-decoration: none; }
  h2, h3, caption { break-after: avoid; } h2 { margin-top: 1.2em; }
  figure, tr, .summary, .warning, .tiles figure { break-inside: avoid; }
  #slides { font-size: 7pt; }
  #slides th[scope="row"] { min-width: 5em; } #slides .words { min-width: 9em; }
  .wide { overflow: visible; } tbody tr:first-child { break-before: avoid; }
  .pair img { max-height: 85mm; width: auto; } thead { display: table-header-group; }
  th[aria-sort] button::after { content: ""; }
}
"""
