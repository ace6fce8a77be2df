"""The script of a trace's page: no library, and elements for what can be seen alone."""

SCRIPT = r""""use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const chunks = data.texts.length, slots = data.slots, words = (n) => n.toLocaleString("en");
const AROUND = Math.max(4, Math.ceil(1600 / data.chunkSize));  // chunks of text on each side of the current one
const CONTEXT = 90;  // characters around a selected chunk
const EDGE = { left: 48, right: 6, top: 6, bottom: 22 };  // of the map, in CSS pixels
const LEGEND = "The stronger the shade, the more weight. Below the dashed line lies what the window does not reach.";
let group = data.group, current = 0, picture = null;

function selection(chunk) {
  const { ids, weights } = data.groups[group], found = [];
  for (let at = chunk * slots; at < (chunk + 1) * slots; at++) {
    if (ids[at] >= 0) found.push({ id: ids[at], weight: weights[at] / 10000 });
  }
  return found;
}

function make(parent, tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function context(chunk, step) {  // at least CONTEXT characters before (step -1) or behind a chunk, where there are
  let text = "";
  for (let at = chunk + step; at >= 0 && at < chunks && text.length < CONTEXT; at += step) {
    text = step < 0 ? data.texts[at] + text : text + data.texts[at];
  }
  return text;
}

function drawText(picks) {
  const pane = $("text"), first = Math.max(0, current - AROUND), last = Math.min(chunks - 1, current + AROUND);
  const rank = new Map(picks.slice(0, 3).map((pick, i) => [pick.id, i]));
  pane.replaceChildren();
  for (let chunk = first; chunk <= last; chunk++) {
    let kind = chunk === current ? "current" : chunk > current ? "after" : "";
    if (rank.has(chunk)) kind = "rank" + rank.get(chunk);
    const span = make(pane, "span", kind, data.texts[chunk]);
    span.dataset.chunk = chunk;
    span.title = "chunk " + words(chunk);
  }
  const bold = pane.querySelector(".current");
  pane.scrollTop = bold.offsetTop - pane.clientHeight * 0.4;
}

function drawSelected(picks) {
  const pane = $("selected");
  pane.replaceChildren();
  $("choice").textContent = "What serves chunk " + words(current) + ", best first";
  if (!picks.length) make(pane, "p", "none", "Nothing: no chunk lies far enough back to be selected.");
  picks.forEach((pick, i) => {
    const percent = (100 * pick.weight).toFixed(1) + " %", away = words(current - pick.id) + " back";
    const card = make(pane, "button", i < 3 ? "card rank" + i : "rest");
    card.dataset.chunk = pick.id;
    make(card, "b", "", i + 1 + " ");
    make(card, "span", "", "chunk " + words(pick.id));
    make(card, "small", "", percent + " \u00b7 " + away);
    if (i >= 3) return;
    make(card, "i").style.width = Math.max(1, 100 * pick.weight) + "%";
    const quote = make(card, "q");
    quote.append(context(pick.id, -1).slice(-CONTEXT));
    make(quote, "mark", "", data.texts[pick.id]);
    quote.append(context(pick.id, 1).slice(0, CONTEXT));
  });
}

function plotArea() {
  const side = $("map").clientWidth;
  const size = Math.max(1, side - EDGE.left - EDGE.right), height = Math.max(1, side - EDGE.top - EDGE.bottom);
  return { side, size, height, x: (c) => EDGE.left + (c + 0.5) / chunks * size,
           y: (c) => EDGE.top + height - (c + 0.5) / chunks * height };
}

function paintPicture(width, height, ink) {  // all selections of the group, in device pixels
  const image = new ImageData(width, height), { ids, weights } = data.groups[group];
  const dot = Math.ceil(1.5 * devicePixelRatio), wide = Math.max(dot, Math.ceil(width / chunks));
  const high = Math.max(dot, Math.ceil(height / chunks));
  for (let at = 0; at < ids.length; at++) {
    if (ids[at] < 0) continue;
    const left = Math.floor(Math.floor(at / slots) / chunks * width);
    const top = height - Math.floor(ids[at] / chunks * height) - high;
    const alpha = 25 + 230 * Math.min(1, weights[at] / 10000 / data.strong);
    for (let y = Math.max(0, top); y < top + high; y++) {
      for (let x = left; x < Math.min(width, left + wide); x++) {
        const pixel = 4 * (y * width + x);
        if (image.data[pixel + 3] < alpha) {
          [image.data[pixel], image.data[pixel + 1], image.data[pixel + 2]] = ink;
          image.data[pixel + 3] = alpha;
        }
      }
    }
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function drawMap(picks) {
  const canvas = $("map"), ratio = devicePixelRatio, area = plotArea(), style = getComputedStyle(document.body);
  const color = (name) => style.getPropertyValue(name).trim();
  const wide = Math.round(area.size * ratio), high = Math.round(area.height * ratio);
  if (!picture || picture.width !== wide || picture.height !== high) {
    picture = paintPicture(wide, high, style.color.match(/\d+/g).slice(0, 3).map(Number));
  }
  canvas.width = canvas.height = Math.round(area.side * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.strokeStyle = color("--line");
  pen.strokeRect(EDGE.left, EDGE.top, area.size, area.height);
  pen.drawImage(picture, EDGE.left, EDGE.top, area.size, area.height);
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = color("--faint");
  pen.textAlign = "right";
  const bottom = EDGE.top + area.height, ticks = [0, chunks - 1];
  ticks.forEach((c, i) => pen.fillText(words(c), EDGE.left - 5, area.y(c) + 8 * i));
  ticks.forEach((c, i) => {
    pen.textAlign = ["left", "right"][i];
    pen.fillText(words(c), area.x(c), bottom + 14);
  });
  pen.textAlign = "center";
  pen.fillText("chunk", EDGE.left + area.size / 2, bottom + 14);
  pen.save();
  pen.translate(EDGE.left - 9, EDGE.top + area.height / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText("looks back to", 0, 0);
  pen.restore();
  pen.strokeStyle = color("--accent");
  pen.setLineDash([3, 3]);
  pen.beginPath();  // below this line lies what the window does not reach
  pen.moveTo(area.x(Math.min(chunks - 1, data.window)), area.y(0));
  pen.lineTo(area.x(chunks - 1), area.y(Math.max(0, chunks - 1 - data.window)));
  pen.stroke();
  pen.setLineDash([]);
  pen.beginPath();
  pen.moveTo(area.x(current), EDGE.top);
  pen.lineTo(area.x(current), bottom);
  pen.stroke();
  picks.slice(0, 3).map((pick, i) => [pick, ["--one", "--two", "--three"][i]]).reverse().forEach(([pick, name]) => {
    pen.fillStyle = color(name);
    pen.beginPath();
    pen.arc(area.x(current), area.y(pick.id), 4.5, 0, 2 * Math.PI);
    pen.fill();
  });
}

function drawControls() {
  $("back").disabled = current === 0;
  $("forth").disabled = current === chunks - 1;
  $("jump").value = current;
  for (const button of $("groups").children) button.setAttribute("aria-pressed", button.dataset.group === "" + group);
  $("measures").replaceChildren();
  for (const [name, value] of data.groups[group].measures) {
    make($("measures"), "dt", "", name);
    make($("measures"), "dd", "", value);
  }
}

function draw() {
  const picks = selection(current);
  drawControls();
  drawText(picks);
  drawSelected(picks);
  drawMap(picks);
}

function go(chunk, toGroup = group) {
  if (!Number.isFinite(chunk)) chunk = current;
  if (toGroup !== group) picture = null;
  [current, group] = [Math.min(chunks - 1, Math.max(0, Math.round(chunk))), toGroup];
  location.replace("#chunk=" + current + "&group=" + group);
  draw();
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1)), wanted = Number(asked.get("group") ?? group);
  const chunk = Number(asked.get("chunk") ?? current), toGroup = data.groups[wanted] ? wanted : group;
  if (chunk !== current || toGroup !== group) go(chunk, toGroup);
}

function fromMap(event) {
  const area = plotArea(), box = $("map").getBoundingClientRect();
  const chunk = Math.floor((event.clientX - box.left - EDGE.left) / area.size * chunks);
  const to = Math.floor((EDGE.top + area.height - (event.clientY - box.top)) / area.height * chunks);
  const inside = chunk >= 0 && chunk < chunks && to >= 0 && to < chunks;
  $("where").textContent = inside ? "Here chunk " + words(chunk) + " looks back to chunk " + words(to) + "." : LEGEND;
  if (event.buttons) go(chunk);
}

for (const pane of ["text", "selected"]) {
  $(pane).addEventListener("click", (event) => {
    const target = event.target.closest("[data-chunk]");
    if (target && !String(getSelection())) go(Number(target.dataset.chunk));
  });
}
$("back").addEventListener("click", () => go(current - 1));
$("forth").addEventListener("click", () => go(current + 1));
$("jump").addEventListener("change", () => go($("jump").value === "" ? NaN : Number($("jump").value)));
$("map").addEventListener("pointerdown", fromMap);
$("map").addEventListener("pointermove", fromMap);
$("map").addEventListener("pointerleave", () => { $("where").textContent = LEGEND; });
addEventListener("keydown", (event) => {
  if (event.target === $("jump") || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], pick = selection(current)[Number(event.key) - 1];
  if (step) go(current + step);
  else if (event.key === "Home" || event.key === "End") go(event.key === "Home" ? 0 : chunks - 1);
  else if (pick) go(pick.id);
  else return;
  event.preventDefault();
});
addEventListener("hashchange", fromAddress);
addEventListener("resize", () => drawMap(selection(current)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { picture = null; draw(); });

$("about").textContent = data.about;
$("where").textContent = LEGEND;
$("last").textContent = "of 0 to " + words(chunks - 1);
$("jump").max = chunks - 1;
if (data.groups.length > 1) {
  data.groups.forEach((_, i) => {
    const button = make($("groups"), "button", "", "group " + i);
    button.dataset.group = i;
    button.addEventListener("click", () => go(current, i));
  });
}
draw();
fromAddress();
"""
