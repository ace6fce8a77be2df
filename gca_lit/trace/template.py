"""The page of a trace, but for its script: `trace_page` puts in $TITLE, $SCRIPT and $DATA."""

TEMPLATE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$TITLE</title>
<style>
:root {
  --page: #fbfaf8; --card: #ffffff; --ink: #22201d; --faint: #6f6a63; --line: #e2ded7; --accent: #2b5d8a;
  --one: #c8372d; --two: #2468c9; --three: #c79a00;
  --one-back: #fbdad6; --two-back: #d5e4fb; --three-back: #fbeeb0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #17181b; --card: #1f2125; --ink: #e6e3de; --faint: #9a968f; --line: #34363b; --accent: #8ab8e6;
    --one: #f0756b; --two: #74a9f7; --three: #e5c04b;
    --one-back: #57231f; --two-back: #1d3b67; --three-back: #54460f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header {
  position: sticky; top: 0; z-index: 1; background: var(--page); border-bottom: 1px solid var(--line);
  padding: .7rem 1.5rem; display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; align-items: center;
}
h1 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: .8rem; margin: 0 0 .6rem; color: var(--faint); font-weight: 600; }
header p { margin: 0; color: var(--faint); font-size: .85rem; }
nav { margin-left: auto; display: flex; flex-wrap: wrap; gap: .9rem; align-items: center; }
nav div { display: flex; gap: .35rem; align-items: center; }
button, input {
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .25rem .65rem; font-variant-numeric: tabular-nums;
}
button { cursor: pointer; }
button:hover:enabled { border-color: var(--accent); }
button:disabled { color: var(--faint); opacity: .5; cursor: default; }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--page); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
input { width: 6.5rem; text-align: right; }
main { display: grid; grid-template-columns: minmax(0, 1fr) 22rem 22rem; gap: 1.4rem; padding: 1.2rem 1.5rem; }
section { min-width: 0; }
#text {
  position: sticky; top: 5.2rem; height: calc(100vh - 8rem); overflow-y: auto; padding: 0 1rem 0 0;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 16px/1.6 Charter, "Bitstream Charter", Georgia, serif;
}
#text span { cursor: pointer; border-radius: 2px; }
#text span:hover { background: var(--line); }
#text .current { font-weight: 700; text-decoration: underline var(--accent) 2px; text-underline-offset: 5px; }
#text .after { color: var(--faint); }
.rank0 { --mark: var(--one); --back: var(--one-back); }
.rank1 { --mark: var(--two); --back: var(--two-back); }
.rank2 { --mark: var(--three); --back: var(--three-back); }
#text .rank0, #text .rank1, #text .rank2, mark { background: var(--back); color: inherit; border-radius: 2px; }
mark { box-shadow: 0 0 0 2px var(--back); box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.card {
  display: block; width: 100%; text-align: left; border-left: 5px solid var(--mark); margin-bottom: .8rem;
  padding: .6rem .8rem; border-radius: 4px 8px 8px 4px;
}
.card b { color: var(--mark); }
.card small, .rest small { float: right; color: var(--faint); font-variant-numeric: tabular-nums; }
.card i { display: block; height: 4px; margin: .4rem 0; border-radius: 2px; background: var(--mark); }
.card q {
  display: block; quotes: none; overflow-wrap: anywhere; color: var(--faint);
  font: 15px/1.5 Charter, "Bitstream Charter", Georgia, serif; max-height: 15em; overflow: auto;
}
.card mark { color: var(--ink); }
.rest { display: block; width: 100%; text-align: left; border: 0; background: none; padding: .2rem .3rem; }
.none { color: var(--faint); }
canvas { display: block; width: 100%; aspect-ratio: 1; cursor: crosshair; touch-action: none; }
#where { color: var(--faint); font-size: .8rem; min-height: 3em; margin: .3rem 0 1rem; }
dl { display: grid; grid-template-columns: 1fr auto; gap: .3rem 1rem; font-size: .85rem; margin: 0; }
dt { color: var(--faint); }
dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
@media (max-width: 1150px) {
  main { grid-template-columns: minmax(0, 1fr) 20rem; }
  #overview { grid-column: 1 / -1; max-width: 34rem; }
}
@media (max-width: 720px) {
  main { grid-template-columns: minmax(0, 1fr); padding: 1rem; }
  header { position: static; padding: .7rem 1rem; }
  nav { margin-left: 0; }
  #text { height: 50vh; position: relative; top: 0; }
}
</style>
</head>
<body>
<header>
  <div><h1>$TITLE</h1><p id="about"></p></div>
  <nav aria-label="Chunks">
    <div id="groups" role="group" aria-label="Retrieval group"></div>
    <div>
      <button id="back" aria-label="Previous chunk" title="Previous chunk (left arrow)">&#9664;</button>
      <label>chunk <input id="jump" type="number" min="0" step="1"></label> <span id="last"></span>
      <button id="forth" aria-label="Next chunk" title="Next chunk (right arrow)">&#9654;</button>
    </div>
  </nav>
</header>
<main>
  <section><h2>The document around the chunk in bold; click on a chunk to go there</h2><div id="text"></div></section>
  <section><h2 id="choice"></h2><div id="selected" aria-live="polite"></div></section>
  <section id="overview">
    <h2>All selections; click to go there</h2>
    <canvas id="map" role="img" aria-label="Map of selections: chunk, chunk looked back to, weight as shade"></canvas>
    <p id="where"></p>
    <dl id="measures"></dl>
  </section>
</main>
<noscript>This page needs JavaScript.</noscript>
<script type="application/json" id="data">$DATA</script>
<script>
$SCRIPT</script>
</body>
</html>
"""
