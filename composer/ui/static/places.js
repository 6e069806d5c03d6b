// Where each LoRA acts, drawn over the picture. value: {shown}. The rows, with the text of each one's
// place, are the mixer's: they come by its event, and what is drawn goes back to it by another.
const SIDE = 32;  // cells of a place in each direction, as in composer/fusions/places.py
const COLOURS = ['#e2502c', '#2770ea', '#158a5c', '#c9860a', '#a544c9', '#6b7485'];
const HALVES = {
  Left: (x) => x < 0.5, Right: (x) => x >= 0.5, Top: (x, y) => y < 0.5, Bottom: (x, y) => y >= 0.5,
};
const box = element.querySelector('.places');
const whose = element.querySelector('.whose');
const pad = element.querySelector('.pad');
const under = element.querySelector('.under');
const over = element.querySelector('.over');
const size = element.querySelector('.size');
const small = document.createElement('canvas');
small.width = small.height = SIDE;
let rows = [];
let chosen = null;
let erasing = false;
let last = null;  // where the pointer was, in cells
const cells = new Map();  // by name

function read(text) {
  const found = new Uint8Array(SIDE * SIDE);
  if (!text) return found;
  const bytes = atob(text);
  found.forEach((_, i) => { found[i] = (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1; });
  return found;
}

function write(drawn) {
  if (!drawn.some(Boolean)) return '';
  const bytes = new Uint8Array(SIDE * SIDE / 8);
  drawn.forEach((on, i) => { if (on) bytes[i >> 3] |= 128 >> (i & 7); });
  return btoa(String.fromCharCode(...bytes));
}

function colour(name) {
  return COLOURS[rows.findIndex((row) => row.name === name) % COLOURS.length];
}

function paint() {
  const shown = document.querySelector('#stage .canvas');
  const there = shown && !shown.hidden && shown.src;
  under.hidden = !there;
  if (there && under.src !== shown.src) under.src = shown.src;
  const side = (id) => Number((document.querySelector('#' + id + ' input') || {}).value) || 1;
  pad.style.aspectRatio = side('width') + ' / ' + side('height');
  const ratio = window.devicePixelRatio || 1;
  over.width = Math.max(1, Math.round(pad.clientWidth * ratio));
  over.height = Math.max(1, Math.round(pad.clientHeight * ratio));
  const context = over.getContext('2d');
  context.imageSmoothingQuality = 'high';
  for (const row of rows) {
    const drawn = cells.get(row.name);
    if (!drawn.some(Boolean)) continue;
    const image = small.getContext('2d').createImageData(SIDE, SIDE);
    const parts = [1, 3, 5].map((at) => parseInt(colour(row.name).slice(at, at + 2), 16));
    drawn.forEach((on, i) => image.data.set([...parts, on ? 255 : 0], 4 * i));
    small.getContext('2d').putImageData(image, 0, 0);
    context.globalAlpha = row.name === chosen ? 0.62 : 0.36;
    context.drawImage(small, 0, 0, over.width, over.height);
  }
}

function commit() {
  document.dispatchEvent(new CustomEvent('composer:place', {
    detail: {name: chosen, place: write(cells.get(chosen))},
  }));
  chips();
}

function at(event) {
  const edge = over.getBoundingClientRect();
  return [(event.clientX - edge.left) / edge.width * SIDE, (event.clientY - edge.top) / edge.height * SIDE];
}

function dab([x, y]) {
  const drawn = cells.get(chosen);
  const wide = Number(size.value);
  const high = wide * over.width / over.height;  // a circle on the picture, whatever its shape
  drawn.forEach((_, i) => {
    const [dx, dy] = [(i % SIDE) + 0.5 - x, Math.floor(i / SIDE) + 0.5 - y];
    if ((dx / wide) ** 2 + (dy / high) ** 2 <= 1) drawn[i] = erasing ? 0 : 1;
  });
}

function stroke(to) {
  const from = last || to;
  const steps = Math.max(1, Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1])));
  for (let i = 1; i <= steps; i += 1) {
    dab(from.map((start, axis) => start + (to[axis] - start) * i / steps));
  }
  last = to;
  paint();
}

over.addEventListener('pointerdown', (event) => {
  if (!chosen || event.button) return;
  over.setPointerCapture(event.pointerId);
  stroke(at(event));
  event.preventDefault();
});
over.addEventListener('pointermove', (event) => { if (last) stroke(at(event)); });
for (const end of ['pointerup', 'pointercancel']) {
  over.addEventListener(end, () => {
    if (last) commit();
    last = null;
  });
}
over.addEventListener('pointerenter', () => { if (!last) paint(); });

function chips() {
  whose.replaceChildren(...rows.map((row) => {
    const chip = make('button', 'chip', row.title);
    chip.setAttribute('role', 'radio');
    chip.setAttribute('aria-checked', row.name === chosen);
    chip.style.setProperty('--own', colour(row.name));
    chip.append(make('span', 'where', cells.get(row.name).some(Boolean) ? 'its place' : 'everywhere'));
    chip.addEventListener('click', () => { chosen = row.name; show(); });
    return chip;
  }));
}

function show() {
  box.hidden = !(props.value && props.value.shown && rows.length);
  chips();
  if (!box.hidden) paint();
}

function fill(inside) {
  if (!chosen) return;
  cells.get(chosen).forEach((_, i, drawn) => {
    drawn[i] = inside((i % SIDE + 0.5) / SIDE, (Math.floor(i / SIDE) + 0.5) / SIDE) ? 1 : 0;
  });
  commit();
  paint();
}

element.querySelector('.halves').append(...Object.entries(HALVES).map(([name, inside]) => {
  const button = make('button', '', name);
  button.addEventListener('click', () => fill(inside));
  return button;
}));
element.querySelector('.clear').addEventListener('click', () => fill(() => false));
element.querySelectorAll('[data-tool]').forEach((button) => button.addEventListener('click', () => {
  erasing = button.dataset.tool === 'erase';
  element.querySelectorAll('[data-tool]').forEach((other) => {
    other.setAttribute('aria-pressed', other === button);
  });
}));
document.addEventListener('composer:placed', (event) => {
  rows = event.detail;
  cells.clear();
  rows.forEach((row) => cells.set(row.name, read(row.place)));
  if (!rows.some((row) => row.name === chosen)) chosen = rows.length ? rows[0].name : null;
  show();
});
watch('value', show);
show();
document.dispatchEvent(new CustomEvent('composer:hello'));
