// In which ways to compare, and for how many seeds. value: {kinds: [{kind, title, help, on}], seeds,
// most, offers: [[names of the LoRAs of a gate file]], known: [{weights: {name: weight}, told}],
// mixloras: [[names of the LoRAs in whose place one can stand]],
// problems: [...]}.
const kinds = element.querySelector('.kinds');
const seeds = element.querySelector('.seeds');
const sum = element.querySelector('.sum');
const problems = element.querySelector('.problems');
const room = 'composer:' + (props.room || '');
let state = {kinds: [], seeds: 1, most: 1, offers: [], known: [], mixloras: [], problems: []};
let speaking = [];
let mine = '';

const just = (names) => names.length === speaking.length && names.every((name) => speaking.includes(name));
const gates = () => state.offers.filter(just).length;
const known = () => state.known.find((offer) => just(Object.keys(offer.weights)));

const mixloras = () => (state.mixloras || []).filter(
  (names) => names.some((name) => speaking.includes(name))).length;

function commit() {
  mine = JSON.stringify(state);
  props.value = structuredClone(state);
  count();
}

function count() {
  const each = {alone: speaking.length, gates: gates(), best: known() ? 1 : 0, mixlora: mixloras()};
  const ways = state.kinds.filter((line) => line.on)
    .reduce((whole, line) => whole + (line.kind in each ? each[line.kind] : 1), 0);
  const pictures = ways * state.seeds;
  // one LoRA alone comes to the same as its sums, which are then made once
  sum.textContent = speaking.length > 1 && pictures
    ? 'up to ' + pictures + (pictures === 1 ? ' picture' : ' pictures') : '';
}

function train() {
  const tabs = [...document.querySelectorAll('#pages [role=tab]')];
  const tab = tabs.find((one) => one.textContent.trim() === 'Train gates');
  if (tab) tab.click();
}

function quoted(name) {
  return /^[\w.\/-]+$/.test(name) ? name : "'" + name.replaceAll("'", "'\\''") + "'";
}

// What is said of a way beside its name, and what one can do where it cannot be taken.
function help(entry, missing) {
  const several = speaking.length > 1;
  if (entry.kind === 'mixlora') {
    if (missing) return [speaking.length ? 'none has learned what these call.' : entry.help];
    return [(mixloras() > 1 ? mixloras() + ' files ' : '') + entry.help];
  }
  if (missing && !several) return ['for two LoRAs or more.'];
  if (entry.kind === 'gates') {
    if (!missing) return [(gates() > 1 ? gates() + ' files ' : '') + entry.help];
    const more = make('button', 'train', 'Train some');
    more.type = 'button';
    more.addEventListener('click', train);
    return ['none know just these LoRAs yet. ', more];
  }
  if (entry.kind === 'best') {
    if (!missing) return [known().told];
    const command = 'composer tune-weights ' + speaking.map(quoted).join(' ');
    return ['none are known for just these LoRAs. Find them with ', make('code', 'command', command)];
  }
  return [entry.help];
}

function line(entry) {
  const there = {gates, best: known, mixlora: mixloras}[entry.kind];
  const missing = Boolean(there) && !there();
  const label = make('label', 'kind' + (missing ? ' missing' : ''));
  label.dataset.kind = entry.kind;
  const box = make('input');
  box.type = 'checkbox';
  box.checked = entry.on && !missing;
  box.disabled = missing;
  box.addEventListener('change', () => { entry.on = box.checked; commit(); });
  const words = make('span', 'words');
  words.append(make('span', 'name', entry.title), make('span', 'help'));
  words.lastChild.append(...help(entry, missing));
  label.append(box, words);
  return label;
}

function choice(number) {
  const label = make('label', 'seed-count');
  const button = make('input');
  button.type = 'radio';
  button.name = 'seed-count';
  button.value = number;
  button.checked = number === state.seeds;
  button.addEventListener('change', () => { state.seeds = number; commit(); });
  label.append(button, make('span', '', String(number)));
  return label;
}

function render() {
  kinds.replaceChildren(...state.kinds.map(line));
  const numbers = Array.from({length: state.most}, (_, i) => choice(i + 1));
  seeds.replaceChildren(seeds.firstElementChild, ...numbers);
  problems.hidden = !state.problems.length;
  const many = state.problems.length > 1 ? ' files' : ' file';
  problems.replaceChildren(
    make('summary', '', state.problems.length + many + ' cannot be used'),
    ...state.problems.map((text) => make('p', '', text)));
  count();
}

function take() {
  if (!props.value || JSON.stringify(props.value) === mine) return;  // what has focus keeps it
  state = structuredClone(props.value);
  render();
}

document.addEventListener(room + 'mixed', (event) => { speaking = event.detail; render(); });
watch('value', take);
take();
document.dispatchEvent(new CustomEvent(room + 'hello'));
