// The chosen LoRAs. value: [{name, title, role, trigger, on, weight, strength, text_encoder|null, steps, depth, place}],
// weight: of a sum; strength: how many times what gates give it counts; steps: from which part of the
// sampling to which it is active, [0, 1] for all of it; depth: likewise of the U-Net; place: where in the
// picture, as the text of a drawing, '' for everywhere.
const list = element.querySelector('.rows');
const bar = element.querySelector('.bar');
const sum = element.querySelector('.sum');
const nothing = element.querySelector('.nothing');
const LIMIT = 2;  // of the slider
const MOST = 10;  // of the number beside it, as the studio allows
let rows = [];
let gates = null;  // the learned gates that are chosen: {id, names}
const opened = new Set();
const room = 'composer:' + (props.room || '');  // a page with a mixer of its own names its room

function commit() {
  props.value = rows.map((row) => ({...row}));
  shares();
  mixed();
}

function mixed() {
  const active = rows.filter((row) => row.on && (row.weight || row.text_encoder));
  document.dispatchEvent(new CustomEvent(room + 'mixed', {detail: active.map((row) => row.name)}));
}

function shares() {
  if (gates) {
    const on = rows.filter((row) => row.on);
    bar.replaceChildren(...on.map((row) => make('span', 'gated role-' + row.role)));
    sum.textContent = (on.length === 1 ? '1 LoRA' : on.length + ' LoRAs') + ' · shared out by gates';
    sum.title = '';
    return;
  }
  const active = rows.filter((row) => row.on && row.weight);
  const total = active.reduce((whole, row) => whole + Math.abs(row.weight), 0);
  bar.replaceChildren(...active.map((row) => {
    const part = make('span', 'role-' + row.role);
    part.style.flexGrow = Math.abs(row.weight);
    part.classList.toggle('negative', row.weight < 0);
    return part;
  }));
  sum.textContent = active.length
    ? (active.length === 1 ? '1 LoRA' : active.length + ' LoRAs') + ' · weights sum to '
      + active.reduce((whole, row) => whole + row.weight, 0).toFixed(2)
    : '';
  sum.title = total ? '' : 'no LoRA is active';
}

function fader(row, key, label) {
  const line = make('div', 'fader');
  const range = make('input');
  range.type = 'range';
  range.min = -LIMIT; range.max = LIMIT; range.step = 0.05;
  range.setAttribute('aria-label', label);
  const number = make('input', 'number');
  number.type = 'number';
  number.min = -MOST; number.max = MOST; number.step = 0.05;
  number.setAttribute('aria-label', label + ', as a number');
  const show = (source) => {
    const value = row[key] === null ? row.weight : row[key];
    if (source !== range) range.value = value;
    if (source !== number) number.value = Number(value).toFixed(2);
    const at = (Math.min(LIMIT, Math.max(-LIMIT, value)) + LIMIT) / (2 * LIMIT) * 100;
    range.style.setProperty('--from', Math.min(at, 50) + '%');
    range.style.setProperty('--to', Math.max(at, 50) + '%');
  };
  const take = (source) => {
    const value = Number(source.value);
    if (source.value === '' || !Number.isFinite(value)) return;
    const most = source === number ? MOST : LIMIT;
    row[key] = Math.min(most, Math.max(-most, value));
    show(source);
    commit();
    line.dispatchEvent(new Event('moved'));
  };
  range.addEventListener('input', () => take(range));
  range.addEventListener('dblclick', () => { range.value = 1; take(range); });
  number.addEventListener('input', () => take(number));
  number.addEventListener('blur', () => show(null));
  line.append(range, number);
  line.show = show;
  show(null);
  return line;
}

function line(row) {
  const node = make('div', 'row role-' + row.role);
  node.dataset.name = row.name;
  node.classList.toggle('off', !row.on);
  const top = make('div', 'top');
  const power = make('button', 'switch');
  power.setAttribute('role', 'switch');
  power.setAttribute('aria-checked', row.on);
  power.setAttribute('aria-label', row.title + ' on or off');
  power.addEventListener('click', () => {
    row.on = !row.on;
    power.setAttribute('aria-checked', row.on);
    node.classList.toggle('off', !row.on);
    commit();
  });
  const name = make('span', 'name', row.title);
  name.title = row.name;
  const kind = make('span', 'kind', row.trigger ? row.role + ' · “' + row.trigger + '”' : row.role);
  const more = make('button', 'more', 'Advanced');
  const remove = make('button', 'remove', '×');
  remove.setAttribute('aria-label', 'Remove ' + row.title);
  remove.hidden = Boolean(gates);  // gates need all of theirs; the switch takes one out
  remove.addEventListener('click', () => toggle(row));
  top.append(power, name, kind, more, remove);

  const weight = gates
    ? fader(row, 'strength', 'Strength of ' + row.title)
    : fader(row, 'weight', 'Weight of ' + row.title);
  const fold = make('div', 'fold');
  const apart = make('label', 'apart');
  const box = make('input');
  box.type = 'checkbox';
  box.checked = row.text_encoder !== null;
  apart.append(box, make('span', '', 'Another weight for the text encoder'));
  const words = fader(row, 'text_encoder', 'Text encoder weight of ' + row.title);
  const follow = () => {
    words.classList.toggle('follows', row.text_encoder === null);
    words.querySelectorAll('input').forEach((input) => { input.disabled = row.text_encoder === null; });
    words.show(null);
  };
  box.addEventListener('change', () => {
    row.text_encoder = box.checked ? row.weight : null;
    follow();
    commit();
  });
  weight.addEventListener('moved', follow);
  fold.append(...(gates ? [] : [apart, words]), spanOf(row, 'steps'), spanOf(row, 'depth'));
  const unfold = (open) => {
    fold.hidden = !open;
    more.setAttribute('aria-expanded', open);
    if (open) opened.add(row.name); else opened.delete(row.name);
  };
  more.addEventListener('click', () => unfold(fold.hidden));
  unfold(opened.has(row.name) || limited(row) || (!gates && row.text_encoder !== null));
  follow();
  if (gates) {
    weight.title = 'The gates decide where and when this LoRA is active; 1 is as much as they give';
  }
  node.append(top, weight, fold);
  return node;
}

function limited(row) {
  return [row.steps, row.depth].some(([start, end]) => start > 0 || end < 1);
}

function spanOf(row, part) {
  const label = make('div', 'span');
  if (part === 'depth') label.title = 'Parts of the U-Net in the order they run; the words are read in full';
  const fields = [0, 1].map((end) => {
    const field = make('input', 'number');
    field.type = 'number';
    field.min = 0; field.max = 100; field.step = 5;
    field.value = Math.round(100 * row[part][end]);
    field.setAttribute('aria-label', (end ? 'Last' : 'First') + ' part of the ' + part + ' of ' + row.title + ', in percent');
    field.addEventListener('input', () => {
      const value = Number(field.value) / 100;
      if (field.value === '' || !Number.isFinite(value)) return;
      row[part] = row[part].map((old, i) => (i === end ? Math.min(1, Math.max(0, value)) : old));
      commit();
    });
    return field;
  });
  label.append(make('span', '', 'Active from'), fields[0], make('span', '', 'to'), fields[1],
    make('span', '', '% of the ' + part));
  return label;
}

function announce() {
  document.dispatchEvent(new CustomEvent(room + 'rows', {detail: rows.map((row) => row.name)}));
  const placed = rows.map(({name, title, place}) => ({name, title, place: place || ''}));
  document.dispatchEvent(new CustomEvent(room + 'placed', {detail: placed}));
  mixed();
}

function render() {
  list.replaceChildren(...rows.map(line));
  nothing.hidden = rows.length > 0;
  shares();
  announce();
}

function toggle(entry) {
  const there = rows.some((row) => row.name === entry.name);
  if (there && gates) {
    rows.forEach((row) => { if (row.name === entry.name) row.on = !row.on; });
    commit();
    render();
    return;
  }
  if (there) {
    rows = rows.filter((row) => row.name !== entry.name);
  } else {
    rows.push({
      name: entry.name, title: entry.title, role: entry.role, trigger: entry.trigger,
      on: true, weight: entry.weight, text_encoder: null, steps: [0, 1], depth: [0, 1], place: '', strength: 1,
    });
  }
  commit();
  render();
  trigger(there ? 'removed' : 'added', {name: entry.name});
}

document.addEventListener(room + 'toggle', (event) => toggle(event.detail));
document.addEventListener(room + 'hello', announce);
document.addEventListener(room + 'place', (event) => {
  rows.forEach((row) => { if (row.name === event.detail.name) row.place = event.detail.place; });
  commit();
});
document.addEventListener(room + 'gates', (event) => {
  const before = gates && gates.id;
  gates = event.detail;
  if (before !== (gates && gates.id)) render();
});
watch('value', () => {
  rows = (props.value || []).map((row) => ({...row}));
  render();
});
rows = (props.value || []).map((row) => ({...row}));
render();
document.dispatchEvent(new CustomEvent(room + 'hello'));
