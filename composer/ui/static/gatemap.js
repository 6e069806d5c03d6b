// Which LoRA had which weight where in the picture that is shown. value: null (no map), {id} (there is one), or in
// full {id, experts: [{title, role}], units: [{name, stage}], rows: [{label, mean, steps, entropy,
// png, file}], numbers, file}; mean[expert][unit] and steps[expert][step][unit] in percent.
const fold = element.querySelector('.gatemap');
const table = element.querySelector('table');
const tabs = element.querySelector('.views');
const reading = element.querySelector('.reading');
const links = element.querySelector('.links');
const NAMES = 92;  // pixels of the first column
const LEAST = 25;  // and of each of the others, at least
let view = 0;
let asked = null;

function show(words) { reading.textContent = words; }

function look() {
  const value = props.value;
  if (!value || value.rows || !fold.open || asked === value.id) return;
  asked = value.id;
  trigger('look', {id: value.id});
}

function stages(units) {
  const row = make('tr', 'stages');
  row.append(make('th'));
  let last = null;
  for (const unit of units) {
    if (last && last.stage === unit.stage) {
      last.cell.colSpan += 1;
    } else {
      last = {stage: unit.stage, cell: make('th', unit.stage ? 'stage-name' : '', unit.stage)};
      row.append(last.cell);
    }
  }
  return row;
}

function line(className, title, cells) {
  const row = make('tr', className);
  const head = make('th', '', title);
  head.scope = 'row';
  row.append(head, ...cells);
  return row;
}

function paint(canvas, steps) {
  const colour = getComputedStyle(canvas).getPropertyValue('color');
  canvas.width = steps[0].length;
  canvas.height = steps.length;
  const pen = canvas.getContext('2d');
  pen.fillStyle = colour;
  steps.forEach((units, step) => units.forEach((share, unit) => {
    pen.globalAlpha = share / 100;
    pen.fillRect(unit, step, 1, 1);
  }));
}

function strip(value, expert, steps) {
  const cell = make('td', 'strip');
  cell.colSpan = value.units.length;
  const canvas = make('canvas');
  canvas.style.height = Math.max(36, Math.min(96, 5 * steps.length)) + 'px';
  canvas.addEventListener('pointermove', (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset, size, many) => Math.min(many - 1, Math.max(0, Math.floor(offset / size * many)));
    const unit = at(event.clientX - box.left, box.width, value.units.length);
    const step = at(event.clientY - box.top, box.height, steps.length);
    show(value.units[unit].name + ' · ' + Math.round(100 * step / steps.length) + ' % of the steps done · '
      + value.experts[expert].title + ' ' + steps[step][unit] + '\u00a0%');
  });
  cell.append(canvas);
  return {cell, draw: () => paint(canvas, steps)};
}

let redraw = [];

function fill(value) {
  const row = value.rows[Math.min(view, value.rows.length - 1)];
  const body = make('tbody');
  table.style.minWidth = NAMES + LEAST * value.units.length + 'px';
  const numbers = make('tr', 'numbers-row');
  numbers.append(make('th'), ...value.units.map((unit, i) => {
    const cell = make('th');
    const pin = make('button', '', i + 1);
    pin.title = 'Pin ' + unit.name;
    pin.setAttribute('aria-label', pin.title);
    pin.addEventListener('click', () => trigger('pin', {unit: unit.name}));
    cell.append(pin);
    return cell;
  }));
  body.append(stages(value.units), numbers);
  redraw = [];
  value.experts.forEach((expert, e) => {
    const role = 'role-' + expert.role;
    body.append(line('shares ' + role, expert.title, row.mean[e].map((share, u) => {
      const cell = make('td', share > 85 ? 'strong full' : share > 70 ? 'strong' : '', share);
      cell.style.setProperty('--share', share + '%');
      cell.title = value.units[u].name + ': ' + expert.title + ' ' + share + ' %';
      return cell;
    })));
    const drawn = strip(value, e, row.steps[e]);
    body.append(line('time ' + role, '', [drawn.cell]));
    redraw.push(drawn.draw);
  });
  body.append(line('entropy', 'Evenness', row.entropy.map((number) => make('td', '', number.toFixed(1)))));
  table.replaceChildren(body);
  redraw.forEach((draw) => draw());
  show('Point at a place in the map to read it.');
  tabs.hidden = value.rows.length < 2;
  tabs.replaceChildren(...value.rows.map((one, i) => {
    const tab = make('button', '', one.label);
    tab.setAttribute('role', 'tab');
    tab.setAttribute('aria-selected', i === view);
    tab.addEventListener('click', () => { view = i; fill(value); });
    return tab;
  }));
  const link = (words, address, file) => {
    const node = make('a', '', words);
    node.href = address;
    node.download = file;
    return node;
  };
  links.replaceChildren(link('Download map', row.png, row.file), link('Download numbers', value.numbers, value.file));
}

function render() {
  const value = props.value;
  fold.hidden = !value;
  fold.classList.toggle('empty', !value || !value.rows);
  if (!value) return;
  if (value.rows) {
    asked = null;
    fill(value);
  } else {
    look();
  }
}

fold.addEventListener('toggle', look);
new MutationObserver(() => redraw.forEach((draw) => draw()))
  .observe(document.body, {attributes: true, attributeFilter: ['class']});
watch('value', render);
render();
