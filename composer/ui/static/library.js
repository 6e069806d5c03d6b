// The rail of LoRA cards. value: {cards: [...], problems: [...]}. Texts only ever enter the page
// through textContent, because names and triggers come from files that strangers made.
const grid = element.querySelector('.cards');
const search = element.querySelector('.search');
const roles = element.querySelector('.roles');
const empty = element.querySelector('.nothing');
const problems = element.querySelector('.problems');
let chosen = new Set();
let role = null;

function card(entry) {
  const title = entry.description || entry.title;
  const button = loraButton('card', entry, chosen.has(entry.name), title, () => {
    document.dispatchEvent(new CustomEvent('composer:toggle', {detail: entry}));
  });
  button.firstElementChild.append(make('span', 'badge', entry.role));
  const text = make('span', 'text');
  text.append(make('span', 'name', entry.title));
  text.append(make('span', 'trigger', entry.trigger || 'no trigger word'));
  text.append(make('span', 'facts', entry.facts));
  button.append(text);
  return button;
}

function filter() {
  const cards = (props.value && props.value.cards) || [];
  filterLoras(grid.querySelectorAll('.card'), cards, search.value, empty,
    (entry) => !role || entry.role === role);
}

function chips(cards) {
  const present = [...new Set(cards.map((entry) => entry.role))];
  if (!present.includes(role)) role = null;
  roles.replaceChildren();
  if (present.length < 2) return;
  for (const name of present) {
    const chip = make('button', 'chip role-' + name, name);
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
  showProblems(problems, value.problems);
  chips(value.cards);
  filter();
}

search.addEventListener('input', filter);
document.addEventListener('composer:rows', (event) => {
  chosen = new Set(event.detail);
  pressChosen(grid.querySelectorAll('.card'), chosen);
});
watch('value', render);
render();
document.dispatchEvent(new CustomEvent('composer:hello'));
element.querySelector('.refresh').addEventListener('click', () => trigger('refresh'));
document.addEventListener('composer:refresh', () => trigger('refresh'));
