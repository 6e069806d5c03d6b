// A training as it goes. value: {state, title, loras: [{title, role}], stages: [{key, label,
// fraction, share}], what, left, message, good, total, curves: [{key, label, role, points: [[step,
// number]]}], entropy: [[step, number]]}. Lines are moved, never made anew, so nothing flickers.
const root = element.querySelector('.training');
const SVG = 'http://www.w3.org/2000/svg';
const charts = {};
const muted = new Set();
let last = '';

function draw(tag, className) {
  const node = document.createElementNS(SVG, tag);
  if (className) node.setAttribute('class', className);
  return node;
}

function set(node, values) {
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
}

// Round numbers between 0 and the top, about four.
function ticks(top) {
  const rough = top / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((n) => n * power >= rough) * power;
  const found = [];
  for (let at = 0; at <= top * 1.001; at += step) found.push(at);
  return found;
}

const short = (number) => Number(number.toPrecision(3)).toString();

function chart(name) {
  const figure = element.querySelector('.chart.' + name);
  const svg = figure.querySelector('svg');
  const grid = draw('g', 'grid');
  const area = draw('path', 'area');
  const lines = draw('g', 'lines');
  const cursor = draw('line', 'cursor');
  const dots = draw('g', 'dots');
  const words = draw('g', 'words');
  svg.append(grid, area, lines, cursor, dots, words);
  const made = {figure, svg, grid, area, lines, cursor, dots, words, paths: new Map(), data: null, at: null};
  const move = (event) => {
    const box = svg.getBoundingClientRect();
    made.at = event.clientX - box.left;
    read(made);
  };
  svg.addEventListener('pointermove', move);
  svg.addEventListener('pointerdown', move);
  svg.addEventListener('pointerleave', () => { made.at = null; read(made); });
  return made;
}

function plot(made, curves, total, top, labels) {
  const width = made.svg.clientWidth || 400;
  const height = made.svg.clientHeight || 120;
  const box = {left: 30, right: width - 10, top: 10, bottom: height - 18};
  const x = (step) => box.left + (box.right - box.left) * step / Math.max(total, 1);
  const y = (number) => box.bottom - (box.bottom - box.top) * Math.min(number, top) / top;
  set(made.svg, {viewBox: '0 0 ' + width + ' ' + height});
  made.data = {curves, x, y, box, total};
  const rows = [];
  const words = [];
  for (const at of labels || ticks(top)) {
    const number = typeof at === 'number' ? at : at[0];
    const row = draw('line', number === 0 ? 'floor' : '');
    set(row, {x1: box.left, x2: box.right, y1: y(number), y2: y(number)});
    rows.push(row);
    const word = draw('text', 'side');
    set(word, {x: box.left - 6, y: y(number) + 3.5});
    word.textContent = typeof at === 'number' ? short(at) : at[1];
    words.push(word);
  }
  for (const step of new Set([0, Math.round(total / 2), total])) {
    const word = draw('text', step === 0 ? 'first' : step === total ? 'last' : 'middle');
    set(word, {x: x(step), y: height - 4});
    word.textContent = step === 0 ? 'step 0' : step;
    words.push(word);
  }
  made.grid.replaceChildren(...rows);
  made.words.replaceChildren(...words);
  const seen = new Set();
  for (const curve of curves) {
    seen.add(curve.key);
    let path = made.paths.get(curve.key);
    if (!path) {
      path = draw('path', 'line ' + (curve.role ? 'role-' + curve.role : 'is-' + curve.key));
      made.paths.set(curve.key, path);
      made.lines.append(path);
    }
    path.style.display = muted.has(curve.key) ? 'none' : '';
    const points = curve.points.filter((p) => Number.isFinite(p[1]));
    set(path, {d: points.map((p, i) => (i ? 'L' : 'M') + x(p[0]).toFixed(1) + ' ' + y(p[1]).toFixed(1)).join('')});
  }
  for (const [key, path] of made.paths) {
    if (!seen.has(key)) { path.remove(); made.paths.delete(key); }
  }
  const main = curves.find((curve) => curve.main);
  if (main && main.points.length > 1) {
    const points = main.points;
    set(made.area, {d: 'M' + x(points[0][0]).toFixed(1) + ' ' + box.bottom
      + points.map((p) => 'L' + x(p[0]).toFixed(1) + ' ' + y(p[1]).toFixed(1)).join('')
      + 'L' + x(points[points.length - 1][0]).toFixed(1) + ' ' + box.bottom + 'Z'});
  } else {
    set(made.area, {d: ''});
  }
  read(made);
}

// What the curves are under the pointer, or at their end.
function read(made) {
  const {curves, x, y, box, total} = made.data || {curves: []};
  const shown = curves.filter((curve) => curve.points.length && !muted.has(curve.key));
  const reading = made.figure.querySelector('.reading');
  const live = made.at !== null && shown.length;
  made.cursor.style.display = live ? '' : 'none';
  if (!shown.length) { reading.textContent = ''; made.dots.replaceChildren(); return; }
  const main = shown.find((curve) => curve.main) || shown[0];
  const wanted = live ? (made.at - box.left) / (box.right - box.left) * total : Infinity;
  const near = (points) => points.reduce((best, p) => Math.abs(p[0] - wanted) < Math.abs(best[0] - wanted) ? p : best);
  const at = Number.isFinite(wanted) ? near(main.points) : main.points[main.points.length - 1];
  if (live) set(made.cursor, {x1: x(at[0]), x2: x(at[0]), y1: box.top, y2: box.bottom});
  made.dots.replaceChildren(...shown.map((curve) => {
    const point = live ? near(curve.points) : curve.points[curve.points.length - 1];
    const dot = draw('circle', curve.role ? 'role-' + curve.role : 'is-' + curve.key);
    set(dot, {cx: x(point[0]), cy: y(point[1]), r: curve.main ? 3.5 : 2.5});
    return dot;
  }));
  reading.textContent = (live ? 'step ' + at[0] + ' · ' : '') + (live && shown.length > 1
    ? shown.map((curve) => curve.label + ' ' + short(near(curve.points)[1])).join(' · ')
    : short(at[1]));
}

function legend(curves) {
  const box = element.querySelector('.legend');
  const known = [...box.children].map((node) => node.dataset.key).join('\n');
  if (known === curves.map((curve) => curve.key).join('\n')) return;
  box.replaceChildren(...curves.map((curve) => {
    const button = make('button', curve.role ? 'role-' + curve.role : 'is-' + curve.key, curve.label);
    button.dataset.key = curve.key;
    button.setAttribute('aria-pressed', !muted.has(curve.key));
    button.addEventListener('click', () => {
      muted.has(curve.key) ? muted.delete(curve.key) : muted.add(curve.key);
      button.setAttribute('aria-pressed', !muted.has(curve.key));
      render();
    });
    return button;
  }));
}

function stages(list) {
  const box = element.querySelector('.stages');
  if (box.children.length !== list.length) {
    box.replaceChildren(...list.map((stage) => {
      const node = make('span', 'stage-' + stage.key);
      node.append(make('i'), make('em', '', stage.label));
      return node;
    }));
  }
  list.forEach((stage, i) => {
    const node = box.children[i];
    node.style.flexGrow = stage.share;
    node.firstChild.style.setProperty('--done', 100 * stage.fraction + '%');
    node.classList.toggle('now', stage.now);
  });
  const whole = list.reduce((sum, stage) => sum + stage.share * stage.fraction, 0);
  box.setAttribute('aria-valuenow', Math.round(100 * whole));
}

function render() {
  const value = props.value || {state: 'none'};
  const none = value.state === 'none';
  // New gates: whoever shows gates looks for them again.
  if (value.state === 'finished' && last === value.title + ' running') {
    document.dispatchEvent(new CustomEvent('composer:refresh'));
  }
  last = value.title + ' ' + (value.state === 'stopping' ? 'running' : value.state);
  root.dataset.state = value.state;
  root.dataset.name = value.title || '';
  element.querySelector('.invitation').hidden = !none;
  element.querySelector('.running').hidden = none;
  element.querySelector('.title').textContent = none ? 'Train gates' : value.title;
  const loras = element.querySelector('.loras');
  loras.replaceChildren(...(value.loras || []).map((lora) => make('span', 'role-' + lora.role, lora.title)));
  if (none) return;
  stages(value.stages);
  element.querySelector('.what').textContent = value.what;
  element.querySelector('.left').textContent = value.left;
  const message = element.querySelector('.message');
  message.hidden = !value.message;
  // Set only when it changes: screen readers read it out.
  if (message.firstChild.textContent !== value.message) message.firstChild.textContent = value.message;
  message.classList.toggle('good', !!value.good);
  element.querySelector('.use').hidden = !value.good;
  const some = value.curves.some((curve) => curve.points.length);
  for (const figure of element.querySelectorAll('.chart')) figure.hidden = !some;
  if (!some) return;
  charts.loss = charts.loss || chart('loss');
  charts.entropy = charts.entropy || chart('entropy');
  legend(value.curves);
  const shown = value.curves.filter((curve) => !muted.has(curve.key));
  const highest = Math.max(0.01, ...shown.flatMap((curve) => curve.points.map((p) => p[1]).filter(Number.isFinite)));
  // Early on the curves get a part of the way as their width, else they would be a dot.
  const made = Math.max(...value.curves.map((curve) => curve.points.length && curve.points[curve.points.length - 1][0]));
  let width = value.total;
  while (width / 2 >= Math.max(20, 2 * made)) width = Math.ceil(width / 2);
  plot(charts.loss, value.curves, width, highest * 1.08);
  const entropy = [{key: 'entropy', label: 'evenness', main: true, points: value.entropy}];
  plot(charts.entropy, entropy, width, 1, [[0, '0'], [0.5, '½'], [1, '1']]);
}

element.querySelector('.use').addEventListener('click', () => {
  document.querySelector('#pages [role=tab]').click();
  document.dispatchEvent(new CustomEvent('composer:use-gates', {detail: props.value.title}));
});
new ResizeObserver(render).observe(root);
watch('value', render);
render();
