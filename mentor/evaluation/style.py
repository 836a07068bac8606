"""How pages look: one style sheet, which every page has inside."""

STYLE = """:root { color-scheme: light; --ink: #1d2733; --soft: #5d6b7a; --line: #dfe5eb; --wash: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.25rem; border-top: 1px solid var(--line); padding-top: 1.25rem; }
h3 { margin: 1.25rem 0 .5rem; font-size: 1rem; }
p { max-width: 60rem; margin: .4rem 0; }
small { color: var(--soft); font-weight: 400; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .75rem .45rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 600; min-width: 16rem; }
tbody th small { display: block; }
td { white-space: nowrap; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.pass { color: #1c6b34; font-weight: 600; }
.fail { color: #a8321f; font-weight: 600; }
.cases { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem; }
article { border: 1px solid var(--line); border-radius: 8px; padding: .6rem; background: var(--wash); }
.prompt { white-space: pre-line; font-size: .85rem; line-height: 1.35; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.row { display: flex; gap: .4rem; }
figure { margin: 0; flex: 1 1 0; max-width: 8rem; }
img { width: 100%; height: auto; display: block; image-rendering: pixelated; border-radius: 3px; }
figcaption, .scores { color: var(--soft); font-size: .75rem; margin: .2rem 0 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.5rem; }
svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #5d6b7a; }
svg .rule { stroke: #dfe5eb; }
.legend { font-size: .8rem; color: var(--soft); }
.key { white-space: nowrap; margin-right: .9rem; }
.key i { display: inline-block; width: .8rem; height: .2rem; vertical-align: middle; margin-right: .3rem; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .75rem; overflow-x: auto; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
"""
