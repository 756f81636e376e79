"""The look of the report: one style sheet, light and dark, screen and paper, from 390 pixels up."""

CSS = """
:root { color-scheme: light dark; --page:#fbfbf9; --card:#ffffff; --ink:#1c2024; --soft:#5b6470; --line:#dfe2e6;
  --accent:#0b63a5; --mark:213,94,0; --good:#0a7d5b; --bad:#b0413e; }
@media (prefers-color-scheme: dark) { :root { --page:#14171a; --card:#1b1f24; --ink:#e6e8ea; --soft:#9aa4af;
  --line:#313840; --accent:#6db7f2; --mark:240,140,60; --good:#4cc9a0; --bad:#f08c86; } }
* { box-sizing:border-box; }
html { scroll-behavior:smooth; scroll-padding-top:3.5rem; -webkit-text-size-adjust:100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior:auto; } }
body { margin:0; background:var(--page); color:var(--ink);
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main, header.top, footer { max-width:1120px; margin:0 auto; padding:0 20px; }
a { color:var(--accent); }
a:focus-visible, summary:focus-visible, [tabindex]:focus-visible {
  outline:3px solid var(--accent); outline-offset:2px; }
.skip { position:absolute; left:-999px; }
.skip:focus { left:12px; top:8px; background:var(--card); padding:6px 12px; z-index:5; }
header.top { padding-top:34px; }
header.top p.kicker { margin:0; color:var(--soft); font-size:.82rem; letter-spacing:.08em; text-transform:uppercase; }
h1 { font-size:clamp(1.5rem,3.4vw,2.15rem); line-height:1.2; margin:.2em 0 .4em; letter-spacing:-.01em; }
h2 { font-size:1.3rem; margin:2.4em 0 .4em; letter-spacing:-.005em; }
h3 { font-size:1.02rem; margin:1.4em 0 .3em; }
p, ul { max-width:72ch; }
p.note, figcaption, .soft { color:var(--soft); font-size:.9rem; }
nav.toc { position:sticky; top:0; background:var(--page); border-bottom:1px solid var(--line); z-index:3; }
nav.toc ul { list-style:none; margin:0 auto; padding:8px 20px; max-width:1120px; display:flex; gap:4px 18px;
  flex-wrap:wrap; white-space:nowrap; font-size:.92rem; }
nav.toc a { text-decoration:none; }
nav.toc a:hover { text-decoration:underline; }
dl.facts { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(44%,185px),1fr)); gap:14px 18px;
  margin:18px 0 22px; }
dl.facts dt { color:var(--soft); font-size:.8rem; }
dl.facts dd { margin:0; font-weight:600; overflow-wrap:break-word; }
.summary { background:var(--card); border:1px solid var(--line); border-left:4px solid var(--accent); border-radius:8px;
  padding:12px 18px; max-width:none; }
.summary p { margin:.3em 0; max-width:none; }
.scroll { overflow-x:auto; background:var(--card); border:1px solid var(--line); border-radius:8px; }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums; }
th, td { padding:7px; text-align:right; white-space:nowrap; border-bottom:1px solid var(--line); }
tr:last-child td, tr:last-child th { border-bottom:0; }
thead th { color:var(--soft); font-weight:600; font-size:.8rem; vertical-align:bottom; white-space:normal;
  line-height:1.3; }
tbody th { font-weight:600; }
th:first-child, td.left, th.left { text-align:left; }
tbody th:first-child, thead th:first-child { position:sticky; left:0; background:var(--card); }
tbody th.name { white-space:normal; overflow-wrap:anywhere; min-width:25ch; }
td.children { text-align:left; white-space:normal; min-width:min(60vw,420px); }
td small { color:var(--soft); display:block; font-size:.72rem; font-weight:400; }
td.best { color:var(--good); font-weight:700; }
.dot { display:inline-block; width:.7em; height:.7em; border-radius:50%; margin-right:.5em; }
.plots { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr)); gap:18px; margin:14px 0; }
figure { margin:0; background:var(--card); border:1px solid var(--line); border-radius:8px; padding:12px 14px;
  min-width:0; }
figure svg { width:100%; height:auto; display:block; font-family:inherit; }
figure h3 { margin:0 0 6px; font-size:.98rem; }
details { margin:10px 0; }
details > summary { cursor:pointer; font-weight:600; padding:8px 12px; background:var(--card);
  border:1px solid var(--line); border-radius:8px; }
details[open] > summary { margin-bottom:10px; }
.latents { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr)); gap:14px; }
.latent { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:12px 14px; min-width:0; }
.latent h4 { margin:0; font-size:.98rem; display:flex; gap:8px; flex-wrap:wrap; align-items:baseline; }
.latent .concept { font-weight:600; color:var(--accent); overflow-wrap:anywhere; }
.latent .facts { color:var(--soft); font-size:.82rem; margin:.15em 0 .5em; }
.tag { font-size:.72rem; font-weight:600; border:1px solid var(--line); border-radius:99px; padding:1px 8px;
  color:var(--soft); }
.context { margin:0; padding:4px 0; border-top:1px solid var(--line); font-size:.88rem; overflow-wrap:anywhere;
  white-space:pre-wrap; unicode-bidi:isolate; line-height:1.6; }
.context mark { color:inherit; background:rgba(var(--mark),var(--a)); border-radius:3px; padding:1px 0; }
.hole { color:var(--bad); font-weight:700; }
dl.defs dt { font-weight:600; margin-top:.7em; }
dl.defs dd { margin:0; color:var(--soft); max-width:80ch; }
pre, code { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; font-size:.86rem; }
pre { background:var(--card); border:1px solid var(--line); border-radius:8px; padding:12px 14px; overflow-x:auto; }
td code { white-space:nowrap; }
footer { padding:30px 20px 50px; color:var(--soft); font-size:.86rem; }
@media (max-width:560px) { body { font-size:15px; } main, header.top, footer { padding-left:14px; padding-right:14px; }
  nav.toc ul { padding:8px 14px; } figure { padding:10px 8px; }
  tbody th:first-child { white-space:normal; min-width:34vw; } }
@media print { :root { --page:#fff; --card:#fff; --ink:#000; --soft:#444; --line:#bbb; }
  nav.toc, .skip { display:none; }
  figure, .latent, tr { break-inside:avoid; } h2 { break-after:avoid; } .scroll { overflow:visible; }
  body { font-size:11pt; } a { color:inherit; text-decoration:none; }
  .context mark { -webkit-print-color-adjust:exact; print-color-adjust:exact; } }
"""
