// The page: asks the server for frames one by one, and shows each.

import { colorOf, drawAxes, drawBox } from "./overlay.js";
import { token, request } from "./request.js";

const SIZES = [320, 480, 640, 960, 1280, 1920];
const MAX_BYTES = 16 * 2 ** 20;
const FULL = 1013; // the server's reason to close: so many watch already, as it has said
const SILENT = 10e3; // milliseconds without an answer, which the server gives within 3 s: the connection is lost
const SLOW = 60e3; // milliseconds that the picture of an answer may take
const HELD = 10e3; // milliseconds for which a list that was touched, and perhaps only closed again, is left alone
const LONGEST = 4096; // pixels of the canvas: browsers have limits of their own, and show nothing beyond
const REST = 150; // milliseconds for which a control must rest before it is sent: a key that is held changes it often
const byId = (id) => document.getElementById(id);
const view = byId("view"), context = view.getContext("2d");

let reference, heads, socket;
let shown = null; // what is on the canvas: { message, picture, since }
let photograph = null; // file that is shown instead of the camera
let asked = 0;
let silence = 0; // timer of the answer that is waited for
let lost = () => {}; // ends a connection that is silent
let pending = false; // a frame has been asked for
let changing = 0; // settings on their way: frames still tell the old ones
let pulled = null; // the control that the reader holds
const waiting = new Map(); // controls that were changed and not sent yet, and their timers
let told = 0; // until when a notice stays though frames come

function notice(text, seconds = 0) {
  told = performance.now() + 1e3 * seconds;
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

// --- showing -------------------------------------------------------------------------------------

function show(message, picture) {
  shown?.picture !== picture && shown?.picture.close();
  shown = { message, picture, since: new Date() };
  view.classList.remove("lost");
  heads?.set(message);
  draw();
  fillTable(message.faces);
  byId("count").textContent = message.faces.length;
  byId("detection").textContent = `${message.detect_ms.toFixed(1)} ms`;
}

function draw() {
  if (!shown) return;
  const { message: { faces, intrinsics, width, height }, picture } = shown;
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const size = { width: Math.round(scale * width), height: Math.round(scale * height) };
  if (view.width !== size.width || view.height !== size.height) Object.assign(view, size);
  context.setTransform(size.width / width, 0, 0, size.height / height, 0, 0);
  context.drawImage(picture, 0, 0, width, height);
  if (heads && byId("mask").checked && faces.length) {
    context.globalAlpha = 0.7;
    const { width: w, height: h } = picture.width < size.width ? picture : size;
    context.drawImage(heads.drawMask(w, h), 0, 0, width, height);
    context.globalAlpha = 1;
  }
  const unit = Math.max(width / 900, height / 700, 0.6); // lines as thick on any picture
  faces.map((face, i) => ({ face, color: colorOf(face, i) }))
    .sort((a, b) => b.face.translation[2] - a.face.translation[2])
    .forEach(({ face, color }) => {
      if (byId("boxes").checked) drawBox(context, face, color, unit);
      if (byId("axes").checked) drawAxes(context, face, intrinsics, reference.nose, unit);
    });
}

function fillTable(faces) {
  const rows = faces.map((face, i) => {
    const row = document.createElement("tr");
    const distance = Math.hypot(...face.translation_mm);
    const values = [
      face.id ?? i + 1, face.score.toFixed(2), face.pitch.toFixed(1), face.yaw.toFixed(1), face.roll.toFixed(1),
      distance.toFixed(0), ...face.translation_mm.map((v) => v.toFixed(0)),
    ];
    values.forEach((value) => (row.insertCell().textContent = value));
    const dot = document.createElement("span");
    dot.className = "dot";
    dot.style.background = colorOf(face, i);
    row.cells[0].prepend(dot);
    return row;
  });
  if (!rows.length) {
    const row = document.createElement("tr"), cell = row.insertCell();
    Object.assign(cell, { colSpan: 9, className: "empty", textContent: "no face" });
    rows.push(row);
  }
  byId("faces").replaceChildren(...rows);
}

// --- the camera ----------------------------------------------------------------------------------

function connect(wait = 1000) {
  const address = new URL("ws", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.search = token ? `?token=${encodeURIComponent(token)}` : "";
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  let message = null;
  socket.onopen = () => {
    wait = 1000;
    pending = false;
    next();
  };
  socket.onmessage = async ({ data }) => {
    try {
      if (typeof data === "string") {
        message = JSON.parse(data);
        if (message.type === "frame") { // its picture follows
          clearTimeout(silence);
          silence = setTimeout(lost, SLOW);
          return;
        }
        if (!photograph) notice(message.message);
        stopCamera();
      } else {
        await showFrame(message, data);
      }
    } catch (error) {
      console.warn(error); // the next one will do
    }
    clearTimeout(silence);
    pending = false;
    next();
  };
  socket.onclose = ({ code }) => {
    clearTimeout(silence);
    stopCamera();
    if (!photograph && code !== FULL) notice("No connection to the server; trying again.");
    setTimeout(() => start(Math.min(2 * wait, 8000)), wait);
  };
}

function next() {
  if (photograph || pending || socket.readyState !== WebSocket.OPEN) return;
  pending = true;
  asked = performance.now();
  socket.send("next");
  const { onclose } = socket;
  lost = () => { // a closing handshake would wait for an answer, too
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
    onclose({});
  };
  silence = setTimeout(lost, SILENT);
}

async function showFrame(message, jpeg) {
  const received = performance.now();
  let picture;
  try {
    picture = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  } catch {
    return; // the next one will do
  }
  if (photograph) return picture.close();
  if (received > told) notice("");
  show(message, picture);
  if (!changing) setControls(message.settings);
  const network = received - asked - message.waited_ms;
  const latency = message.age_ms + network + performance.now() - received;
  byId("rate").textContent = message.frames_per_second.toFixed(1);
  byId("latency").textContent = `${latency.toFixed(0)} ms`;
}

function stopFigures() {
  byId("rate").textContent = byId("latency").textContent = "–";
}

// What was there is not there now.
function stopCamera() {
  stopFigures();
  if (!shown || photograph) return;
  shown.message = { ...shown.message, faces: [] };
  heads?.set(shown.message);
  draw();
  view.classList.add("lost");
  byId("faces").replaceChildren();
  byId("count").textContent = byId("detection").textContent = "–";
}

// --- photographs ---------------------------------------------------------------------------------

let photographs = 0; // asked about; the answer to one that another has followed, or that was left, is too late
async function detect(file) {
  if (!file) return;
  const number = ++photographs;
  if (file.size > MAX_BYTES) return notice(`${file.name} is too large: at most ${MAX_BYTES / 2 ** 20} MiB.`, 6);
  try {
    const message = await request("detect", file); // first: it tells best what is wrong
    const picture = await createImageBitmap(file);
    if (number !== photographs) return;
    photograph = file;
    byId("back").hidden = false;
    stopFigures();
    const turned = (picture.width > picture.height) !== (message.width > message.height);
    notice(turned ? "This browser does not turn the picture as its EXIF says: what is drawn lies beside the faces." : message.note);
    show(message, picture);
  } catch (error) {
    if (number === photographs) notice(`${file.name}: ${error.message}`, 6);
  }
}

byId("open").onclick = () => byId("file").click();
byId("file").onchange = ({ target }) => {
  detect(target.files[0]);
  target.value = "";
};
byId("back").onclick = () => {
  photographs++;
  photograph = null;
  byId("back").hidden = true;
  notice("");
  next();
};
let entered = 0; // elements below the dragged file: leaving a child is not leaving the page
for (const [name, change] of [["dragenter", 1], ["dragleave", -1], ["dragover", 0]]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    entered += change;
    document.body.classList.toggle("dropping", entered > 0);
  });
}
addEventListener("drop", (event) => {
  event.preventDefault();
  entered = 0;
  document.body.classList.remove("dropping");
  detect(event.dataTransfer.files[0]);
});

byId("snapshot").onclick = () => {
  if (!shown) return notice("There is no picture yet.", 6);
  draw();
  view.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `faces-${shown.since.toISOString().replace(/[:.]/g, "-")}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }, "image/png");
};

// --- settings ------------------------------------------------------------------------------------

const controls = ["model", "input_size", "score_threshold", "smooth", "fast"].map(byId);

// What the server says, but where the reader is choosing.
function setControls(settings) {
  for (const id of ["input_size", "fast"]) {
    const options = byId(id);
    if (![...options].some(({ value }) => Number(value) === settings[id])) options.add(new Option(settings[id]));
  }
  for (const control of controls) {
    if (control === pulled || waiting.has(control)) continue;
    if (control.type === "checkbox") control.checked = settings[control.id];
    else control.value = settings[control.id];
  }
  if (!pulled && !waiting.has(byId("score_threshold"))) byId("threshold").textContent = settings.score_threshold.toFixed(2);
}

async function change(control) {
  const value = control.type === "checkbox" ? control.checked : control.id === "model" ? control.value : Number(control.value);
  try {
    setControls((await request("settings", JSON.stringify({ [control.id]: value }))).settings);
    notice("");
    if (photograph) await detect(photograph);
  } catch (error) {
    notice(error.message, 6);
    const now = await request("settings").catch(() => null); // the server may be gone; it tells when it is back
    if (now) setControls(now.settings);
  } finally {
    changing--;
  }
}

for (const control of controls) {
  control.onchange = () => {
    pulled = null;
    if (!waiting.has(control)) changing++;
    clearTimeout(waiting.get(control));
    waiting.set(control, setTimeout(() => {
      waiting.delete(control);
      change(control);
    }, REST));
  };
}
byId("score_threshold").oninput = ({ target }) => {
  pulled = target;
  byId("threshold").textContent = Number(target.value).toFixed(2);
};
// A slider that was let go of where it was, and a list that is closed as it was, change nothing.
byId("score_threshold").onpointerup = byId("score_threshold").onblur = () => (pulled = null);
for (const control of controls.filter(({ tagName }) => tagName === "SELECT")) {
  let left;
  control.onpointerdown = control.onkeydown = () => {
    pulled = control;
    clearTimeout(left);
    left = setTimeout(() => {
      if (pulled === control) pulled = null;
    }, HELD);
  };
  control.onblur = () => (pulled = null);
}
for (const id of ["boxes", "axes", "mask"]) byId(id).onchange = draw;

// --- start ---------------------------------------------------------------------------------------

async function makeHeads() {
  let why = "They could not be loaded (reload the page)";
  try {
    const { Heads } = await import("./heads.js");
    why = "This browser has no WebGL";
    heads = new Heads(byId("space"), reference);
  } catch (error) {
    console.warn(error);
    byId("space").nextElementSibling.textContent = `${why}: no masks and no heads in space.`;
    byId("mask").disabled = true;
  }
}

async function start(wait) {
  try {
    const { source, settings, models } = await request("settings");
    byId("source").textContent = source;
    byId("model").replaceChildren(...models.map((name) => new Option(name)));
    byId("input_size").replaceChildren(...SIZES.map((size) => new Option(size)));
    setControls(settings);
    if (!reference) {
      reference = await request("face.json");
      await makeHeads();
    }
    connect(wait);
  } catch (error) {
    notice(error.message);
    if (error.status !== 401) setTimeout(start, wait ?? 1000, Math.min(2 * (wait ?? 1000), 8000));
  }
}

start();
