"""The one style sheet and the one script of a report. Both are inlined; nothing is fetched.

Colours: an Okabe-Ito set, darkened for light and lightened for dark so that marks keep a contrast of 3:1 and
more against the background and text 7:1 and more. Everything that has a meaning in colour has a second sign.
"""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--bg:#fff;--ink:#16191d;--soft:#4b535d;--line:#d5d9de;--faint:#eef0f3;
--box:#f7f8fa;
--better:#075e3c;--worse:#9a2a05;--bad:#9a1c1c;--badbg:#fdf0ee;--heat:#b3470a;--link:#0a4f9e;
--c0:#5f6771;--c1:#0063a6;--c2:#b85400;--c3:#00785a;--c4:#a8447f;--c5:#7a6400;--c6:#2f86b8;--c7:#5b3fa6}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--ink:#eceef0;--soft:#aeb6bf;--line:#3a4149;
--faint:#252a30;
--box:#1b1f24;--better:#63d3a2;--worse:#ffa07a;--bad:#ff9d94;--badbg:#33201f;--heat:#ff9a52;
--link:#8ec4ff;
--c0:#aab2bb;--c1:#6bb8f0;--c2:#f0a050;--c3:#4cc9a0;--c4:#e79cc8;--c5:#e0cb52;--c6:#9fd8f5;--c7:#b9a5f2}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,sans-serif;
font-variant-numeric:tabular-nums lining-nums}
main,header{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:18px;line-height:1.3;margin:44px 0 12px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:24px 0 4px}
p{margin:0 0 12px;max-width:78ch;overflow-wrap:anywhere}
.sub{color:var(--soft);margin:4px 0 0;max-width:none}
nav{margin:14px 0 0;display:flex;flex-wrap:wrap;gap:2px 16px;font-size:14px}
a{color:var(--link);text-underline-offset:2px}
nav a{padding:4px 0;text-decoration:none}
nav a:hover,nav a:focus-visible{text-decoration:underline}
:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.lead{font-size:17px;line-height:1.5;max-width:74ch}
.note{color:var(--soft);font-size:14px}
.warning{border-left:4px solid var(--bad);background:var(--badbg);padding:8px 12px}
dl.points{margin:0 0 16px;max-width:96ch;display:grid;grid-template-columns:minmax(9em,auto) 1fr;
gap:8px 20px}
dl.points dt{font-weight:650;overflow-wrap:anywhere}
dl.points dd{margin:0;overflow-wrap:anywhere}
.facts{background:var(--box);border:1px solid var(--line);border-radius:4px;padding:10px 14px 12px;
margin:0 0 14px}
.facts h3{margin:0 0 6px}
.facts dl{margin:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));
gap:3px 28px}
.facts dl.wide{grid-template-columns:1fr}
.facts div{display:grid;grid-template-columns:minmax(0,13em) minmax(0,1fr);gap:12px;font-size:14px}
.facts dt{color:var(--soft);overflow-wrap:anywhere}
.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;width:fit-content;max-width:100%;
margin:0 0 16px;border:1px solid var(--line);border-radius:4px;position:relative}
table{border-collapse:separate;border-spacing:0;min-width:min(100%,44em);font-size:14px;line-height:1.35}
caption{text-align:left;color:var(--soft);font-size:13.5px;padding:8px 10px;background:var(--box)}
caption span{position:sticky;left:10px;display:block;max-width:min(110ch,calc(100vw - 64px))}
th,td{padding:6px;text-align:left;vertical-align:top;border-top:1px solid var(--faint)}
thead th{font-weight:600;border-top:1px solid var(--line);border-bottom:1px solid var(--line);
background:var(--box);
white-space:nowrap;vertical-align:bottom}
tr.first>*{border-top-color:var(--line)}
tbody th{font-weight:400;position:sticky;left:0;background:var(--bg);min-width:7em;max-width:17em;
overflow-wrap:break-word}
tbody th .swatch{margin-left:-3px}.name{white-space:nowrap}.name i{font-style:normal;white-space:normal}
thead th:first-child{position:sticky;left:0;z-index:1;white-space:normal}
section:first-of-type h2{margin-top:22px}
.n{text-align:right;white-space:nowrap}
tbody td{white-space:nowrap}
tbody td.long,tbody td.failed{white-space:normal}
.long{min-width:15em;max-width:46em;overflow-wrap:anywhere}
.fam{display:block;color:var(--soft);font-size:12.5px}
.ci,.diff{display:block;color:var(--soft);font-size:12px}
.diff b{font-weight:700}
.better .diff b{color:var(--better)}.worse .diff b{color:var(--worse)}
.muted{color:var(--soft)}
.failed{color:var(--bad);background:var(--badbg);white-space:normal;text-align:left;
overflow-wrap:anywhere}
.failed span{display:block;max-width:min(70ch,60vw)}
th button{all:unset;cursor:pointer;display:inline-block}
th button:focus-visible{outline:2px solid var(--link);outline-offset:2px}
th button::after{content:" ↕";color:var(--soft);font-weight:400}
th[aria-sort=ascending] button::after{content:" ↑";color:inherit}
th[aria-sort=descending] button::after{content:" ↓";color:inherit}
.swatch{width:18px;height:14px;vertical-align:-2px;margin-right:4px;overflow:visible}
.legend{list-style:none;margin:0 0 8px;padding:0;display:flex;flex-wrap:wrap;gap:2px 18px;font-size:14px}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,272px),1fr));gap:14px 24px;
margin:0 0 8px}
.panels.wide{grid-template-columns:1fr}
.panels.wide .chart{max-width:none}
svg.chart{width:100%;max-width:420px;height:auto;display:block;overflow:visible}
figure{margin:0 0 22px}
figcaption h3{margin-top:18px}
.t{font-size:11px;fill:var(--ink)}.head{font-size:13px;font-weight:650}.row{font-size:11.5px;font-weight:600}
.tick,.axis,.gone{fill:var(--soft)}.axis,.gone{font-style:italic}.strong{font-weight:700}
.grid{stroke:var(--line);stroke-width:.75}
.s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}.s4{--c:var(--c4)}
.s5{--c:var(--c5)}
.s6{--c:var(--c6)}.s7{--c:var(--c7)}
.mark{fill:var(--c);stroke:var(--bg);stroke-width:1}
.whisker{stroke:var(--c);stroke-width:1.6;opacity:.75}
.hollow{fill:var(--bg);stroke:var(--c);stroke-width:2}
.front{fill:none;stroke:var(--soft);stroke-width:1.2;stroke-dasharray:5 3}
.ring{fill:none;stroke:var(--ink);stroke-width:1.3}
.spot{paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round}
.line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
.bar{fill:var(--c1)}
.heat{fill:var(--heat)}.empty{fill:none;stroke:var(--line);stroke-dasharray:3 3}
.chosen{fill:none;stroke:var(--ink);stroke-width:2}
details{margin:0 0 12px}
summary{cursor:pointer;color:var(--soft);font-size:14px;padding:4px 0}
details .scroll{margin-top:6px;max-height:70vh;overflow:auto}
pre{background:var(--box);border:1px solid var(--line);border-radius:4px;padding:10px 12px;
overflow-x:auto;margin:0 0 16px;
font:13.5px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
footer{max-width:1240px;margin:40px auto 0;padding:14px 20px 32px;color:var(--soft);font-size:13.5px}
@media (max-width:600px){main,header,footer{padding-left:14px;padding-right:14px}h1{font-size:22px}
.lead{font-size:16px}
dl.points{grid-template-columns:1fr;gap:2px}dl.points dd{margin-bottom:10px}
.facts div{grid-template-columns:minmax(0,10.8em) minmax(0,1fr)}tbody th{min-width:8.2em;max-width:11em}th,
td{padding:6px 8px}}
@media print{nav{display:none}.scroll,details .scroll{overflow:visible;max-height:none}
h2{break-after:avoid}}
"""

#: Sorts a table when a head is clicked; failed rows and rows without a value stay at the end.
JS = """
document.querySelectorAll('table.sortable').forEach(function(table){
  var body = table.tBodies[0], heads = table.tHead.rows[0].cells;
  Array.prototype.forEach.call(heads, function(head, index){
    var button = document.createElement('button');
    button.type = 'button';
    while (head.firstChild) { button.appendChild(head.firstChild); }
    head.appendChild(button);
    button.addEventListener('click', function(){
      var down = head.getAttribute('aria-sort') === 'ascending';
      Array.prototype.forEach.call(heads, function(other){ other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      var rows = Array.prototype.slice.call(body.rows);
      function key(row){
        var cell = row.cells[index], raw = cell ? cell.getAttribute('data-v') : null;
        if (raw === null || (index > 0 && row.hasAttribute('data-failed'))) { return null; }
        return cell.hasAttribute('data-s') ? raw : Number(raw);
      }
      rows.sort(function(a, b){
        var x = key(a), y = key(b);
        if (x === null || y === null) { return (x === null) - (y === null); }
        var order = typeof x === 'string' ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      rows.forEach(function(row){ row.classList.remove('first'); body.appendChild(row); });
    });
  });
});
"""
