// The LoRAs at hand, small. value: {cards: [...], title}. A click reaches the mixer or the prompts
// of its page, which name the same room and keep the choice.
const faces = element.querySelector('.faces');
const search = element.querySelector('.search');
const nothing = element.querySelector('.nothing');
const MANY = 12;  // from so many on there is a search
const room = 'composer:' + props.room;
let chosen = new Set();

function face(entry) {
  const title = entry.title + ' · ' + entry.role + (entry.trigger ? ' · “' + entry.trigger + '”' : '');
  const button = loraButton('face', entry, chosen.has(entry.name), title, () => {
    document.dispatchEvent(new CustomEvent(room + 'toggle', {detail: entry}));
  });
  button.append(make('span', 'name', entry.title));
  return button;
}

function filter() {
  const cards = (props.value && props.value.cards) || [];
  filterLoras(faces.querySelectorAll('.face'), cards, search.value, nothing);
}

function render() {
  const cards = (props.value && props.value.cards) || [];
  if (props.value && props.value.title) element.querySelector('h2').textContent = props.value.title;
  faces.replaceChildren(...cards.map(face));
  search.hidden = cards.length < MANY;
  filter();
}

search.addEventListener('input', filter);
element.querySelector('.refresh').addEventListener('click', () => trigger('refresh'));
document.addEventListener(room + 'rows', (event) => {
  chosen = new Set(event.detail);
  pressChosen(faces.querySelectorAll('.face'), chosen);
});
watch('value', render);
render();
document.dispatchEvent(new CustomEvent(room + 'hello'));
