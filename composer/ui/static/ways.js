// In which ways to compare, and for how many seeds. value: {lines: [{key, title, brief, on, usual: shown
// at once, each: a way for each LoRA, offered: a way for each offer that fits, none, page, command: what to say and do where
// none fits, offers: [{loras: [names], just: for these LoRAs alone, found_by}]}], seeds, most, scored,
// axes: [{name, values}], most_axes, variables: what an axis can be, [{name, title, example, ways: those
// whose parameter it is}], problems}.
const lines = element.querySelector('.kinds:not(.more)');
const more = element.querySelector('.more');
const seeds = element.querySelector('.seeds');
const sum = element.querySelector('.sum');
const scored = element.querySelector('.scored input');
const axes = element.querySelector('.axes');
const problems = element.querySelector('.problems');
const room = 'composer:' + (props.room || '');
let state = {lines: [], seeds: 1, most: 1, axes: [], variables: [], problems: []};
let chosen = [];
let mine = '';

const fitting = (entry) => entry.offers.filter(({loras, just}) => just
  ? loras.length === chosen.length && loras.every((name) => chosen.includes(name))
  : loras.some((name) => chosen.includes(name)));
const ways = (entry) => entry.offered ? fitting(entry).length : entry.each ? chosen.length : 1;

function commit() {
  mine = JSON.stringify(state);
  props.value = structuredClone(state);
  count();
}

function count() {
  const all = state.lines.filter((entry) => entry.on).reduce((whole, entry) => whole + ways(entry), 0);
  const seeds = state.axes.some(({name}) => name === 'seed') ? 1 : state.seeds;
  const pictures = state.axes.reduce((whole, {values}) => whole * Math.max(1, listed(values).length), all * seeds);
  // one LoRA alone comes to the same as its sums, which are then made once
  sum.textContent = chosen.length > 1 && pictures
    ? 'up to ' + pictures + (pictures === 1 ? ' picture' : ' pictures') : '';
}

const listed = (values) => values.split(values.includes('|') ? '|' : ',').filter((one) => one.trim());

// What an axis can be now: the weights of the chosen LoRAs too, and parameters of the ways that are on.
function variables() {
  const on = new Set(state.lines.filter((entry) => entry.on).map(({key}) => key));
  const weights = chosen.map((name) => (
    {name: 'lora:' + name, title: 'Weight of ' + name, example: '0.6, 0.8, 1', ways: []}));
  const given = state.axes.map(({name}) => name);
  return [...state.variables, ...weights].filter(({name, ways}) => (
    !ways.length || ways.some((way) => on.has(way)) || given.includes(name)));
}

// One thing that varies: what, and its values; an empty one is taken out.
function axis(entry, place) {
  const row = make('div', 'axis');
  const what = make('select');
  what.setAttribute('aria-label', 'What varies');
  const known = variables();
  const lost = entry.name && !known.some(({name}) => name === entry.name);
  if (lost) known.push({name: entry.name, title: entry.name, example: '', ways: []});
  what.append(new Option('Vary …', ''), ...known.map(({name, title}) => new Option(title, name)));
  what.value = entry.name;
  const values = make('input');
  values.type = 'text';
  values.value = entry.values;
  values.setAttribute('aria-label', 'Its values');
  const hint = () => {
    const found = known.find(({name}) => name === what.value);
    values.placeholder = found ? found.example : 'values, with commas';
    values.disabled = !what.value;
  };
  hint();
  what.addEventListener('change', () => {
    if (!what.value) {
      state.axes.splice(place, 1);
      commit();
      showAxes();
      return;
    }
    if (place === state.axes.length) state.axes.push(entry);
    entry.name = what.value;
    hint();
    commit();
    showAxes();
    axes.children[place].querySelector('input').focus();
  });
  values.addEventListener('input', () => { entry.values = values.value; commit(); });
  row.append(what, values);
  return row;
}

function showAxes() {
  const shown = [...state.axes, {name: '', values: ''}].slice(0, state.most_axes);
  axes.replaceChildren(...shown.map(axis));
}

scored.addEventListener('change', () => { state.scored = scored.checked; commit(); });

function openPage(name) {
  const tabs = [...document.querySelectorAll('#pages [role=tab]')];
  const tab = tabs.find((one) => one.textContent.trim() === name);
  if (tab) tab.click();
}

function quoted(name) {
  return /^[\w.\/-]+$/.test(name) ? name : "'" + name.replaceAll("'", "'\\''") + "'";
}

// What is said of a way beside its name, and what one can do where it cannot be taken.
function help(entry, missing) {
  const found = fitting(entry);
  if (!missing) {
    return [found.length && found[0].found_by
      ? found[0].found_by : (found.length > 1 ? found.length + ' files ' : '') + entry.brief];
  }
  if ((entry.page || entry.command) && chosen.length < 2) return ['for two LoRAs or more.'];
  if (!chosen.length) return [entry.brief];
  if (entry.page) {
    const more = make('button', 'train', 'Train some');
    more.addEventListener('click', () => openPage(entry.page));
    return [entry.none + ' ', more];
  }
  if (entry.command) {
    const command = entry.command + ' ' + chosen.map(quoted).join(' ');
    return [entry.none + ' Find them with ', make('code', 'command', command)];
  }
  return [entry.none];
}

function line(entry) {
  const missing = entry.offered && !fitting(entry).length;
  const label = make('label', 'kind' + (missing ? ' missing' : ''));
  label.dataset.kind = entry.key;
  const box = make('input');
  box.type = 'checkbox';
  box.checked = entry.on && !missing;
  box.disabled = missing;
  box.addEventListener('change', () => { entry.on = box.checked; commit(); showAxes(); });
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
  const others = state.lines.filter((entry) => !entry.usual);
  lines.replaceChildren(...state.lines.filter((entry) => entry.usual).map(line));
  more.hidden = !others.length;
  more.replaceChildren(make('summary', '', others.length + ' more ways of merging'), ...others.map(line));
  more.open = more.open || others.some((entry) => entry.on);
  const numbers = Array.from({length: state.most}, (_, i) => choice(i + 1));
  seeds.replaceChildren(seeds.firstElementChild, ...numbers);
  scored.checked = state.scored;
  showAxes();
  showProblems(problems, state.problems);
  count();
}

function take() {
  if (!props.value || JSON.stringify(props.value) === mine) return;  // what has focus keeps it
  state = structuredClone(props.value);
  render();
}

document.addEventListener(room + 'mixed', (event) => { chosen = event.detail; render(); });
watch('value', take);
take();
document.dispatchEvent(new CustomEvent(room + 'hello'));
