// Owns: the page that draws /debug/timeline: a row a choice, a block a step, on a canvas. It is whole by itself, holds no
// data, and writes what it is told as text only.

const style = `
:root { color-scheme: light dark }
body { font: 14px/1.4 system-ui, sans-serif; margin: 1rem }
header { display: flex; gap: 1rem; align-items: center; flex-wrap: wrap }
canvas { width: 100%; display: block; margin: .5rem 0; cursor: grab; touch-action: none }
i { display: inline-block; width: .8em; height: .8em; margin-right: .3em }
#about { white-space: pre; font-family: ui-monospace, monospace; min-height: 8.5em }
`;

/** Its digest is in the page's content security policy. */
export const script = `
"use strict";
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const colors = { wait: "#9994", prompt: "#3b82f6", token: "#22a35a", wrong: "#e0912f", gone: "#dc2626", step: "#888" };
const rowHeight = 16, top = 60, left = 8;
let shown = null, from = 0, to = 1000, follows = true;

async function load() {
  const key = $("key").value;
  const headers = key === "" ? {} : { authorization: "Bearer " + key };
  try {
    const answer = await fetch("debug/timeline", { headers });
    const body = await answer.json();
    if (!answer.ok) throw new Error(answer.status + " " + (body.error?.message ?? body.error ?? ""));
    choose(body.models);
    $("state").textContent = shown ? shown.steps.length + " steps, " + shown.choices.length + " choices" : "no model is loaded";
  } catch (error) {
    $("state").textContent = error.message;
  }
  draw();
}

function choose(models) {
  const name = $("model").value;
  $("model").replaceChildren(...models.map(({ model }) => new Option(model, model)));
  shown = models.find(({ model }) => model === name) ?? models[0] ?? null;
  if (!shown) return;
  $("model").value = shown.model;
  if (follows) {
    const width = to - from;
    const last = shown.steps.at(-1);
    to = (last?.ended ?? shown.now) + width * 0.02;
    from = to - width;
  }
}

const x = (ms) => left + ((ms - from) / (to - from)) * (canvas.clientWidth - 2 * left);
const timeAt = (at) => from + ((at - left) / (canvas.clientWidth - 2 * left)) * (to - from);

function visible() {
  return shown.choices
    .filter(({ arrived, finished }) => arrived < to && (finished ?? shown.now) > from)
    .sort((a, b) => a.choice - b.choice);
}

function block(color, begin, end, y, height) {
  pen.fillStyle = color;
  pen.fillRect(x(begin), y, Math.max(1, x(end) - x(begin) - 0.5), height);
}

function draw() {
  const rows = shown ? visible() : [];
  const height = top + rows.length * rowHeight + 8, scale = devicePixelRatio;
  canvas.style.height = height + "px";
  canvas.width = canvas.clientWidth * scale;
  canvas.height = height * scale;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, canvas.clientWidth, height);
  if (!shown) return;
  const place = new Map(rows.map(({ choice }, row) => [choice, top + row * rowHeight]));
  for (const one of rows) {
    const y = place.get(one.choice);
    block(colors.wait, one.arrived, one.finished ?? shown.now, y + 2, rowHeight - 4);
    if (one.finished) block(one.reason === "error" ? colors.gone : colors.step, one.finished, one.finished, y, rowHeight);
  }
  const most = Math.max(1, ...shown.steps.map(({ tokens }) => tokens));
  for (const step of shown.steps) {
    const end = step.ended ?? shown.now;
    if (end < from || step.launched > to) continue;
    const tall = Math.max(2, (step.tokens / most) * (top - 22));
    block(step.failed ? colors.gone : colors.step, step.launched, end, top - 8 - tall, tall);
    for (const act of step.actions) {
      const y = place.get(act.choice);
      if (y === undefined) continue;
      if (act.action === "preempt") block(colors.gone, step.launched, step.launched, y, rowHeight);
      if (act.action !== "compute") continue;
      block(colorOf(act), step.launched, end, y + 2, rowHeight - 4);
    }
  }
  pen.fillStyle = getComputedStyle(document.body).color;
  pen.font = "11px system-ui";
  pen.fillText("tokens a step, at most " + most + "; " + Math.round(to - from) + " ms across", left, 11);
}

function colorOf({ choice, from, draws, late, guesses, right }) {
  const { promptTokens } = shown.choices.find((one) => one.choice === choice) ?? {};
  if (late || (guesses && right < guesses)) return colors.wrong;
  return from < promptTokens || !draws ? colors.prompt : colors.token;
}

canvas.onpointermove = (event) => {
  if (!shown) return;
  if (event.buttons === 1) {
    const moved = (event.movementX / (canvas.clientWidth - 2 * left)) * (to - from);
    from -= moved;
    to -= moved;
    follows = $("follow").checked = false;
    draw();
    return;
  }
  const at = timeAt(event.offsetX), one = visible()[Math.floor((event.offsetY - top) / rowHeight)];
  const step = shown.steps.findLast(({ launched, ended }) => launched <= at && (ended ?? shown.now) >= at);
  const say = (value) => JSON.stringify(value, (key, v) => (typeof v === "number" ? Math.round(v * 100) / 100 : v));
  const { actions, ...about } = step ?? { actions: [] };
  const own = one ? actions.filter(({ choice }) => choice === one.choice) : actions.slice(0, 5);
  $("about").textContent = [one && say(one), step && say(about), ...own.map(say)].filter(Boolean).join("\\n");
};

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const at = timeAt(event.offsetX), by = Math.exp(event.deltaY / 400);
  from = at - (at - from) * by;
  to = at + (to - at) * by;
  draw();
}, { passive: false });

$("follow").onchange = () => { follows = $("follow").checked; load(); };
$("model").onchange = $("key").onchange = load;
addEventListener("resize", draw);
setInterval(() => { if (follows && !document.hidden) load(); }, 1000);
load();
`;

const legend = [
  ["#9994", "waiting"],
  ["#3b82f6", "prompt"],
  ["#22a35a", "a token"],
  ["#e0912f", "late mask or wrong guess"],
  ["#dc2626", "preempted or failed"],
]
  .map(([color, meaning]) => `<span><i style="background:${color}"></i>${meaning}</span>`)
  .join(" ");

export const timelinePage = `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>millrace: timeline</title><style>${style}</style></head>
<body><header>
<label>Model <select id="model"></select></label>
<label><input id="follow" type="checkbox" checked> follow</label>
<label>Key <input id="key" type="password" autocomplete="off" size="12"></label>
${legend} <span id="state"></span></header>
<canvas id="canvas"></canvas>
<div>Drag to move, turn the wheel to zoom, point at a block to read it.</div>
<div id="about"></div>
<script>${script}</script></body></html>
`;
