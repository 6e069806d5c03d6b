// The chosen LoRAs, the words that call them, and the prompts to learn from.
// value: {turn, loras: [{name, title, role, trigger, text, drafted}], together: {text, drafted}}. A
// text is one prompt a line; `drafted` is how it was written for the user, so that what they wrote
// themselves is known and kept.
const room = 'composer:' + props.room;
const chosen = element.querySelector('.chosen');
const groups = element.querySelector('.groups');
const nothing = element.querySelector('.nothing');
const sum = element.querySelector('.sum');
const BLANK = {turn: 0, loras: [], together: {text: '', drafted: ''}};
const opened = new Set(['together']);
let state = structuredClone(BLANK);
let mine = '';

function commit() {
  mine = JSON.stringify(state);
  props.value = structuredClone(state);
}

function ask() {
  state.turn += 1;
  commit();
  trigger('changed');
}

const count = (text) => text.split('\n').filter((line) => line.trim()).length;
const counted = (text) => {
  const many = count(text);
  return many ? many + (many > 1 ? ' prompts' : ' prompt') : 'none yet';
};

function prompts(key, title, help, holder) {
  const fold = make('details', 'prompts');
  fold.dataset.key = key;
  fold.open = opened.has(key);
  fold.addEventListener('toggle', () => { fold.open ? opened.add(key) : opened.delete(key); });
  const summary = make('summary');
  const many = make('span', 'many', counted(holder.text));
  summary.append(make('span', 'what', title), many);
  const area = make('textarea');
  area.value = holder.text;
  area.rows = 5;
  area.placeholder = 'One prompt a line';
  area.setAttribute('aria-label', title + ', one prompt a line');
  area.addEventListener('input', () => {
    holder.text = area.value;
    many.textContent = counted(holder.text);
    commit();
  });
  fold.append(summary, make('p', 'help', help), area);
  return fold;
}

function line(lora) {
  const node = make('div', 'lora-line role-' + lora.role);
  node.dataset.name = lora.name;
  const top = make('div', 'top');
  const remove = make('button', 'remove', '×');
  remove.setAttribute('aria-label', 'Take out ' + lora.title);
  remove.addEventListener('click', () => toggle(lora));
  const name = make('span', 'name', lora.title);
  name.title = lora.name;
  const called = make('label', 'called');
  const words = make('input');
  words.type = 'text';
  words.value = lora.trigger;
  words.placeholder = 'words that call it';
  words.setAttribute('aria-label', 'Words that call ' + lora.title);
  words.addEventListener('change', () => { lora.trigger = words.value; ask(); });
  called.append(make('span', '', 'called by'), words);
  top.append(make('span', 'dot'), name, called, remove);
  const fold = prompts('alone ' + lora.name, 'Its own prompts',
    'Pictures of these, drawn by this LoRA alone, are what it is to be recognised by.', lora);
  node.append(top, fold);
  return node;
}

function announce() {
  document.dispatchEvent(new CustomEvent(room + 'rows', {detail: state.loras.map((l) => l.name)}));
}

function render() {
  const some = state.loras.length > 0;
  nothing.hidden = some;
  groups.hidden = !some;
  sum.textContent = some ? 'drafted for you, yours to change' : '';
  chosen.replaceChildren(...state.loras.map(line));
  groups.replaceChildren(
    prompts('together', 'All together', 'Prompts that name every LoRA: what the gates are for.', state.together),
  );
  announce();
}

function toggle(entry) {
  if (state.loras.some((lora) => lora.name === entry.name)) {
    state.loras = state.loras.filter((lora) => lora.name !== entry.name);
  } else {
    state.loras.push({
      name: entry.name, title: entry.title, role: entry.role, trigger: entry.trigger,
      text: '', drafted: '',
    });
  }
  render();
  ask();
}

document.addEventListener(room + 'toggle', (event) => toggle(event.detail));
document.addEventListener(room + 'hello', announce);
function take() {
  const value = props.value || BLANK;
  const text = JSON.stringify(value);
  if (text === mine) return;
  if (value.turn < state.turn) { commit(); return; }  // the answer to an earlier question
  state = JSON.parse(text);
  mine = text;
  render();
}
watch('value', take);
take();
render();
