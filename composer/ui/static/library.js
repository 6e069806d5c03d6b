// The rail of LoRA cards. value: {cards: [...], problems: [...]}. Texts only ever enter the page
// through textContent, because names and triggers come from files that strangers made.
const grid = element.querySelector('.cards');
const search = element.querySelector('.search');
const roles = element.querySelector('.roles');
const empty = element.querySelector('.nothing');
const problems = element.querySelector('.problems');
let chosen = new Set();
let role = null;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  return node;
}

function card(entry) {
  const button = make('button', 'card role-' + entry.role);
  button.type = 'button';
  button.dataset.name = entry.name;
  button.title = entry.description || entry.title;
  button.setAttribute('aria-pressed', chosen.has(entry.name));
  const picture = make('span', 'picture');
  if (entry.thumbnail) {
    const image = make('img');
    image.src = entry.thumbnail;
    image.alt = '';
    image.loading = 'lazy';
    picture.append(image);
  } else {
    picture.append(make('span', 'initials', entry.title.slice(0, 2)));
  }
  picture.append(make('span', 'tick', '✓'));
  const badge = make('span', 'badge', entry.role);
  picture.append(badge);
  const text = make('span', 'text');
  text.append(make('span', 'name', entry.title));
  text.append(make('span', 'trigger', entry.trigger || 'no trigger word'));
  text.append(make('span', 'facts', entry.facts));
  button.append(picture, text);
  button.addEventListener('click', () => {
    document.dispatchEvent(new CustomEvent('composer:toggle', {detail: entry}));
  });
  return button;
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  const cards = (props.value && props.value.cards) || [];
  grid.querySelectorAll('.card').forEach((node, i) => {
    const fits = words.every((word) => cards[i].haystack.includes(word))
      && (!role || cards[i].role === role);
    node.hidden = !fits;
    shown += fits;
  });
  empty.hidden = shown > 0;
  empty.textContent = cards.length
    ? 'No LoRA fits this search.'
    : 'No LoRA found. Put .safetensors files into the LoRA folder, then press Refresh.';
}

function chips(cards) {
  const present = [...new Set(cards.map((entry) => entry.role))];
  if (!present.includes(role)) role = null;
  roles.replaceChildren();
  if (present.length < 2) return;
  for (const name of present) {
    const chip = make('button', 'chip role-' + name, name);
    chip.type = 'button';
    chip.setAttribute('aria-pressed', role === name);
    chip.addEventListener('click', () => {
      role = role === name ? null : name;
      chips(cards);
      filter();
    });
    roles.append(chip);
  }
}

function render() {
  const value = props.value || {cards: [], problems: []};
  grid.replaceChildren(...value.cards.map(card));
  element.querySelector('.count').textContent = value.cards.length || '';
  problems.hidden = !value.problems.length;
  problems.replaceChildren();
  if (value.problems.length) {
    const many = value.problems.length > 1;
    problems.append(make('summary', '', value.problems.length
      + (many ? ' files cannot be used' : ' file cannot be used')));
    for (const text of value.problems) problems.append(make('p', '', text));
  }
  chips(value.cards);
  filter();
}

search.addEventListener('input', filter);
document.addEventListener('composer:rows', (event) => {
  chosen = new Set(event.detail);
  grid.querySelectorAll('.card').forEach((node) => {
    node.setAttribute('aria-pressed', chosen.has(node.dataset.name));
  });
});
watch('value', render);
render();
document.dispatchEvent(new CustomEvent('composer:hello'));
element.querySelector('.refresh').addEventListener('click', () => trigger('refresh'));
document.addEventListener('composer:refresh', () => trigger('refresh'));
